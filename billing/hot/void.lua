-- void: ends a call without a charge; the request stays counted, reserved tokens are given back.
--
-- KEYS  epoch, organization, holds, done, rates, in flight
-- ARGV  call, seconds to remember the call
-- Returns 1 where an open hold was released, else 0.

local keys = {
  epoch = KEYS[1], organization = KEYS[2], holds = KEYS[3], done = KEYS[4], rates = KEYS[5], in_flight = KEYS[6],
}
local call, remember_seconds = ARGV[1], ARGV[2]

if redis.call('EXISTS', keys.done) == 1 then return 0 end

local released = redis.call('EXISTS', keys.epoch) == 1 and release(keys, call, 0)
-- Marked even where there was no hold: one that is still on its way must not be placed afterwards.
redis.call('SET', keys.done, 'void', 'EX', remember_seconds)
return released and 1 or 0
