-- Rate buckets: a level that rises by the cost of a call and drains evenly by `per_minute` a minute, or a day.
-- Levels are kept in 60,000ths, of which a millisecond drains exactly `per_minute`: integers, no rounding. In a bucket
-- of `minutes` minutes they are kept in as many times finer parts, so that the same holds.

local PARTS = 60000
-- A bucket of a day is empty after a day, so what is older can be forgotten.
local FORGET_SECONDS = 90000

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function level_at(now, stored, per_minute)
  if not stored then return 0 end
  local level, written_at = string.match(stored, '^(%d+) (%d+)$')
  return math.max(0, tonumber(level) - math.max(0, now - tonumber(written_at)) * per_minute)
end

local function level_text(now, level)
  return string.format('%.0f %.0f', level, now)
end
