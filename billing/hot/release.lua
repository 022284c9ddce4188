-- Ends an open hold: its money, its checkpoint, its places in flight, and the tokens it reserved and did not use.

-- Returns whether the hold was there. `used` is how many tokens the call took of each bucket of tokens; requests are
-- never given back, because the call was made.
local function release(keys, organization, call, used)
  local stored = redis.call('HGET', keys.holds, call)
  if not stored then return false end
  -- First a deletion: Redis lets a script that has begun to write go on, so calls can end even when memory is full.
  redis.call('HDEL', keys.holds, call)
  redis.call('HDEL', keys.checkpoints, call)
  if redis.call('EXISTS', keys.holds) == 0 then redis.call('SREM', keys.open, organization) end
  -- Only what is in front of the request: decoding all of it would cost as much as the rest of this script.
  local hold = cjson.decode(string.match(stored, '^(.-),"request":') .. '}')
  redis.call('HINCRBY', keys.organization, 'held', negative(hold.amount))
  for _, scope in ipairs(hold.in_flight) do
    if redis.call('HINCRBY', keys.in_flight, scope, -1) <= 0 then
      redis.call('HDEL', keys.in_flight, scope)
    end
  end
  for _, scope in ipairs(hold.spend or {}) do
    if redis.call('HEXISTS', keys.spent, scope) == 1 then
      redis.call('HINCRBY', keys.spent, scope, negative(hold.amount))
    end
  end
  local now = nil
  for _, bucket in ipairs(hold.tokens) do
    local unused = bucket.cost - used
    if unused > 0 then
      now = now or now_ms()
      local level = level_at(now, redis.call('HGET', keys.rates, bucket.scope), bucket.per_minute)
      redis.call('HSET', keys.rates, bucket.scope, level_text(now, math.max(0, level - unused * PARTS)))
    end
  end
  if now then redis.call('EXPIRE', keys.rates, FORGET_SECONDS) end
  return true
end
