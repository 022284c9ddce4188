-- silent: the instances that died, and the organizations whose holds may be theirs.
--
-- KEYS  instances, suspects, open
-- ARGV  milliseconds of silence after which an instance is suspected, milliseconds it is suspected before it is dead
-- Returns nothing where all are alive, the usual answer; else the dead instances, each with its last sign of life,
--         and the organizations with open holds.
--
-- Silence alone proves nothing: when Redis was away, or the whole machine asleep, nobody could show a sign, and the
-- first to come back may be the one who asks here. So it has to last for a while after it was noticed.

local instances_key, suspects_key, open_key = unpack(KEYS)
local suspect_ms, dead_ms = tonumber(ARGV[1]), tonumber(ARGV[2])

local now = now_ms()
local before = string.format('(%.0f', now - suspect_ms)
local silent = redis.call('ZRANGEBYSCORE', instances_key, '-inf', before, 'WITHSCORES')
-- A sign from the future was written before the clock was turned back; who lives will write another one.
local ahead = string.format('(%.0f', now + suspect_ms)
for _, one in ipairs(redis.call('ZRANGEBYSCORE', instances_key, ahead, '+inf', 'WITHSCORES')) do
  silent[#silent + 1] = one
end
if #silent == 0 then return {} end

local dead = {}
for i = 1, #silent, 2 do
  local instance, sign = silent[i], silent[i + 1]
  local suspected_sign, suspected_at = string.match(redis.call('HGET', suspects_key, instance) or '', '^(%S+) (%d+)$')
  -- A suspicion of an earlier silence does not count: there was a sign of life since.
  if suspected_sign ~= sign then
    suspected_at = string.format('%.0f', now)
    redis.call('HDEL', suspects_key, instance)
    redis.call('HSET', suspects_key, instance, sign .. ' ' .. suspected_at)
  end
  if tonumber(suspected_at) <= now - dead_ms then
    dead[#dead + 1] = instance
    dead[#dead + 1] = sign
  end
end
if #dead == 0 then return {} end
return {dead, redis.call('SMEMBERS', open_key)}
