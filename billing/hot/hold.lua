-- hold: takes money, rate and a place in flight for one call; all of them or nothing.
--
-- KEYS  epoch, organization, holds, done, rates, in flight, open, instances, spent
-- ARGV  epoch, call, amount, hold as JSON, id of the organization, instance that holds or '', number of buckets,
--       number of in-flight limits, then scope, per_minute, cost, minutes of each bucket, then scope, limit of each
--       in-flight limit, then scope, limit of each spend limit
-- Returns 'placed' or a refusal {reason, scope, retry_after_ms, balance, held, credit_limit}, and after either
--         remaining, reset_ms of each bucket; or 'ended' or 'different' for a call id that was used before. Where a
--         spend limit refuses, the balance is what is left of that limit.

local epoch_key, organization_key, holds_key, done_key, rates_key = unpack(KEYS)
local in_flight_key, open_key, instances_key, spent_key = unpack(KEYS, 6)
local epoch, call, amount, hold, organization, instance, bucket_count, place_count = unpack(ARGV)
local FIRST_BUCKET = 9
local FIRST_PLACE = FIRST_BUCKET + 4 * tonumber(bucket_count)
local FIRST_LIMIT = FIRST_PLACE + 2 * tonumber(place_count)
local LARGEST = 9.0e15

local buckets = {}
local money = {'0', '0', '0'}

local function read_buckets(now)
  local scopes = {}
  for i = 1, tonumber(bucket_count) do
    local at = FIRST_BUCKET + 4 * (i - 1)
    buckets[i] = {
      scope = ARGV[at], per_minute = tonumber(ARGV[at + 1]), cost = tonumber(ARGV[at + 2]),
      parts = PARTS * tonumber(ARGV[at + 3]),
    }
    scopes[i] = ARGV[at]
  end
  if #scopes == 0 then return end
  local stored = redis.call('HMGET', rates_key, unpack(scopes))
  for i, bucket in ipairs(buckets) do
    bucket.level = level_at(now, stored[i], bucket.per_minute)
  end
end

local function with_states(reply)
  for _, bucket in ipairs(buckets) do
    reply[#reply + 1] = math.max(0, math.floor(bucket.per_minute - bucket.level / bucket.parts))
    reply[#reply + 1] = bucket.per_minute > 0 and math.ceil(bucket.level / bucket.per_minute) or 0
  end
  return reply
end

local function refused(reason, scope, retry_after_ms)
  return with_states({reason, scope, retry_after_ms, money[1], money[2], money[3]})
end

-- The bucket with the longest wait; a cost above the limit waits for ever, which is said as 0.
local function full_bucket()
  local fullest, longest = nil, 0
  for _, bucket in ipairs(buckets) do
    local over = bucket.level + (bucket.cost - bucket.per_minute) * bucket.parts
    if over > 0 then
      local wait = bucket.cost > bucket.per_minute and math.huge or math.ceil(over / bucket.per_minute)
      if wait > longest then fullest, longest = bucket, wait end
    end
  end
  return fullest, longest < math.huge and longest or 0
end

local function full_place()
  for i = FIRST_PLACE, FIRST_LIMIT - 1, 2 do
    local running = tonumber(redis.call('HGET', in_flight_key, ARGV[i]) or '0')
    if running >= tonumber(ARGV[i + 1]) then return ARGV[i] end
  end
end

local function affordable()
  local balance, held, credit_limit = tonumber(money[1]), tonumber(money[2]), tonumber(money[3])
  if math.abs(balance) > LARGEST or credit_limit > LARGEST then return false end
  -- Both sides stay below 2^53 where it matters, so the doubles compare exactly.
  return balance - held >= tonumber(amount) - credit_limit
end

-- The limit that the call would pass, as a reason and its scope. What was spent is counted with what is held.
local function full_limit()
  for i = FIRST_LIMIT, #ARGV, 2 do
    local spent = redis.call('HGET', spent_key, ARGV[i])
    -- Without a count nobody knows; a worker brings it within seconds.
    if not spent then return 'limit_unknown', ARGV[i] end
    local left = tonumber(ARGV[i + 1]) - tonumber(spent)
    if tonumber(amount) > left then
      money = {string.format('%.0f', math.max(0, left)), '0', '0'}
      return 'spend', ARGV[i]
    end
  end
end

local function place(now, body)
  redis.call('HINCRBY', organization_key, 'held', amount)
  redis.call('HSET', holds_key, call, string.format('{"placed_at_ms":%.0f,', now) .. body)
  redis.call('SADD', open_key, organization)
  -- Whoever takes a hold is alive. So no instance with an open hold is ever missing among those that are watched.
  if instance ~= '' then redis.call('ZADD', instances_key, string.format('%.0f', now), instance) end
  for i = FIRST_PLACE, FIRST_LIMIT - 1, 2 do
    redis.call('HINCRBY', in_flight_key, ARGV[i], 1)
  end
  for i = FIRST_LIMIT, #ARGV, 2 do
    redis.call('HINCRBY', spent_key, ARGV[i], amount)
  end
  if #buckets == 0 then return end
  local levels = {}
  for _, bucket in ipairs(buckets) do
    bucket.level = bucket.level + bucket.cost * bucket.parts
    levels[#levels + 1] = bucket.scope
    levels[#levels + 1] = level_text(now, bucket.level)
  end
  redis.call('HSET', rates_key, unpack(levels))
  redis.call('EXPIRE', rates_key, FORGET_SECONDS)
end

if redis.call('GET', epoch_key) ~= epoch then return refused('no_epoch', '', 0) end
if redis.call('EXISTS', done_key) == 1 then return {'ended'} end

local now = now_ms()
local body = string.sub(hold, 2)
read_buckets(now)

local stored = redis.call('HGET', holds_key, call)
if stored then
  if string.sub(stored, -#body) ~= body then return {'different'} end
  return with_states({'placed'})
end

local row = redis.call('HMGET', organization_key, 'balance', 'held', 'credit_limit', 'version')
-- Without a version it was never projected: a late settle alone may have made the hash.
if not row[4] then return refused('unknown_organization', '', 0) end
money = row

local bucket, wait_ms = full_bucket()
if bucket then return refused('rate', bucket.scope, wait_ms) end
local scope = full_place()
if scope then return refused('in_flight', scope, 0) end
if not affordable() then return refused('balance', '', 0) end
local reason, limited = full_limit()
if reason then return refused(reason, limited, 0) end

place(now, body)
return with_states({'placed'})
