-- checkpoint: keeps how far the open calls of one instance have come, and that the instance is alive.
--
-- KEYS  instances, then holds, checkpoints of each organization
-- ARGV  instance, then for each organization the number of its calls, and call, checkpoint as JSON of each
-- Returns how many were kept; those of calls that have no open hold (any more) are dropped.

local instances_key, instance = KEYS[1], ARGV[1]

-- First a deletion: Redis lets a script that has begun to write go on, so a gateway is not given up for dead because
-- memory is full.
redis.call('ZREM', instances_key, instance)
redis.call('ZADD', instances_key, string.format('%.0f', now_ms()), instance)

local kept, at = 0, 2
for key = 2, #KEYS, 2 do
  local fields = {}
  local last = at + 2 * tonumber(ARGV[at])
  for i = at + 1, last, 2 do
    if redis.call('HEXISTS', KEYS[key], ARGV[i]) == 1 then
      fields[#fields + 1] = ARGV[i]
      fields[#fields + 1] = ARGV[i + 1]
    end
  end
  if #fields > 0 then redis.call('HSET', KEYS[key + 1], unpack(fields)) end
  kept, at = kept + #fields / 2, last + 1
end
return kept
