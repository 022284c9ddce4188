-- settle: ends a call with a charge: releases its hold, debits the balance, puts the charge on the stream.
--
-- KEYS  epoch, organization, holds, done, rates, in flight, open, checkpoints, spent, stream
-- ARGV  call, id of the organization, seconds to remember the call, amount, charge as JSON, tokens used,
--       then the scope of each spend limit
-- Returns 1, or 0 where the call had ended before and nothing changed.

local keys = {
  epoch = KEYS[1], organization = KEYS[2], holds = KEYS[3], done = KEYS[4],
  rates = KEYS[5], in_flight = KEYS[6], open = KEYS[7], checkpoints = KEYS[8], spent = KEYS[9],
  stream = KEYS[10],
}
local call, organization, remember_seconds, amount, charge, used = unpack(ARGV)

-- A call that was given up for dead and voided has no charge yet; its gateway is alive after all and knows the cost.
local ended = redis.call('GET', keys.done)
if ended and ended ~= 'abandoned' then return 0 end

if redis.call('EXISTS', keys.epoch) == 0 then
  -- A blank Redis has no balance to debit, but the charge must reach Postgres, from which balances are rebuilt.
  redis.call('XADD', keys.stream, '*', 'charge', charge)
else
  local released = release(keys, organization, call, tonumber(used))
  -- Named by the call and not by its hold, so that what is settled after its hold was gone counts as well.
  for i = 7, #ARGV do
    if redis.call('HEXISTS', keys.spent, ARGV[i]) == 1 then redis.call('HINCRBY', keys.spent, ARGV[i], amount) end
  end
  redis.call('HINCRBY', keys.organization, 'balance', negative(amount))
  redis.call('HINCRBY', keys.organization, 'settled', amount)
  -- Read back as text: what HINCRBY returns to Lua is a double.
  local settled = redis.call('HGET', keys.organization, 'settled')
  if released then
    redis.call('XADD', keys.stream, '*', 'charge', charge, 'settled', settled)
  else
    redis.call('XADD', keys.stream, '*', 'charge', charge, 'settled', settled, 'late', '1')
  end
end

redis.call('SET', keys.done, 'settled', 'EX', remember_seconds)
return 1
