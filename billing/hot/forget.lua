-- forget: an instance that died and holds nothing is watched no longer, unless it has shown a sign of life since.
--
-- KEYS  instances, suspects
-- ARGV  instance, its last sign of life as it was read
-- Returns 1 where it is forgotten, else 0.

if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
