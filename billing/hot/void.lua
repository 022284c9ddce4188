-- void: ends a call without a charge; the request stays counted, reserved tokens are given back.
--
-- KEYS  epoch, organization, holds, done, rates, in flight, open, checkpoints, spent
-- ARGV  call, id of the organization, seconds to remember the call, how it ended: 'void', or 'abandoned' where its
--       gateway seems dead and may still settle if it is not
-- Returns 1 where an open hold was released, else 0.

local keys = {
  epoch = KEYS[1], organization = KEYS[2], holds = KEYS[3], done = KEYS[4],
  rates = KEYS[5], in_flight = KEYS[6], open = KEYS[7], checkpoints = KEYS[8], spent = KEYS[9],
}
local call, organization, remember_seconds, ending = unpack(ARGV)

if redis.call('EXISTS', keys.done) == 1 then return 0 end

local released = redis.call('EXISTS', keys.epoch) == 1 and release(keys, organization, call, 0)
-- Marked even where there was no hold: one that is still on its way must not be placed afterwards.
redis.call('SET', keys.done, ending, 'EX', remember_seconds)
return released and 1 or 0
