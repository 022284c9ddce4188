-- install: replaces balances of a shard in a rebuild; the call that carries the new epoch makes them visible.
--
-- KEYS  epoch, stream, open, then organization, holds, rates, in flight, checkpoints, spent of each organization
-- ARGV  last stream entry the caller has booked, new epoch or '' where more is to come,
--       then posted, credit limit, version of each organization
-- Returns 1, or 0 where the stream holds an entry the caller has not booked; then nothing changed.

local epoch_key, stream_key, open_key = unpack(KEYS)
local drained, epoch = ARGV[1], ARGV[2]

local last = redis.call('XREVRANGE', stream_key, '+', '-', 'COUNT', 1)[1]
if last and last[1] ~= drained then return 0 end

-- Without an epoch no hold is taken and a settle touches no balance, so a rebuild may stop anywhere and start again.
redis.call('DEL', epoch_key, open_key)
for i = 1, (#ARGV - 2) / 3 do
  local key, value = 6 * i - 2, 3 * i
  redis.call('DEL', KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], KEYS[key + 4], KEYS[key + 5])
  redis.call('HSET', KEYS[key], 'balance', ARGV[value], 'held', '0', 'credit_limit', ARGV[value + 1],
    'settled', '0', 'version', ARGV[value + 2])
end
if epoch == '' then return 1 end

if not last and drained ~= '0-0' then
  -- A new Redis whose clock is behind would number entries below the position in Postgres, where nobody looks for
  -- them. An entry at that position, removed again, lifts the numbering; it fails where that is already higher.
  redis.pcall('XADD', stream_key, drained, 'position', drained)
  redis.call('XDEL', stream_key, drained)
end
redis.call('SET', epoch_key, epoch)
return 1
