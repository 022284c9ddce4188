-- project: writes a balance as Postgres knows it, less what was settled here and is not booked there yet.
--
-- KEYS  epoch, organization
-- ARGV  epoch, posted, booked total, credit limit, version
-- Returns 1, or 0 where the epoch is another, or what is here is as new.

local epoch_key, organization_key = KEYS[1], KEYS[2]
local epoch, posted, booked_total, credit_limit, version = unpack(ARGV)

-- Whether one non-negative integer text is below another, beyond the range of doubles too.
local function below(left, right)
  if #left ~= #right then return #left < #right end
  return left < right
end

if redis.call('GET', epoch_key) ~= epoch then return 0 end
local stored = redis.call('HMGET', organization_key, 'version', 'settled')
if stored[1] and tonumber(version) <= tonumber(stored[1]) then return 0 end
local settled = stored[2] or '0'

if below(settled, booked_total) then
  -- Postgres booked charges of this epoch that are not here: this Redis lost writes and would give money away.
  redis.call('DEL', epoch_key)
  return 0
end

redis.call('HSETNX', organization_key, 'held', '0')
redis.call('HSETNX', organization_key, 'settled', '0')
redis.call('HSET', organization_key, 'balance', posted, 'credit_limit', credit_limit, 'version', version)
redis.call('HINCRBY', organization_key, 'balance', booked_total)
redis.call('HINCRBY', organization_key, 'balance', negative(settled))
return 1
