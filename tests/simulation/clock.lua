-- Put before every script of the hot store: its time, its stream ids and its expiries follow the simulated clock,
-- which comes as one more argument behind the script's own; nothing in it follows from chance.

local simulated_us = table.remove(ARGV)
local real = redis

local function expire(key, seconds)
  real.call('ZADD', 'simulated:expiry', string.format('%.0f', tonumber(simulated_us) + seconds * 1000000), key)
end

-- As Redis makes them: never below the last one, whatever the clock says.
local function next_id(key)
  local ms = string.sub(simulated_us, 1, -4)
  local last = real.call('HGET', 'simulated:ids', key)
  if not last then return ms .. '-0' end
  local last_ms, sequence = string.match(last, '^(%d+)-(%d+)$')
  if tonumber(last_ms) < tonumber(ms) then return ms .. '-0' end
  return string.format('%s-%.0f', last_ms, tonumber(sequence) + 1)
end

local function add(call, key, id, ...)
  if id == '*' then id = next_id(key) end
  local reply = call('XADD', key, id, ...)
  if type(reply) ~= 'table' then real.call('HSET', 'simulated:ids', key, id) end
  return reply
end

local redis = {
  call = function(command, ...)
    if command == 'TIME' then return {string.sub(simulated_us, 1, -7), string.sub(simulated_us, -6)} end
    if command == 'XADD' then return add(real.call, ...) end
    if command == 'EXPIRE' then return expire(...) end
    if command == 'SET' and select('#', ...) == 4 then
      local key, value, _, seconds = ...
      expire(key, tonumber(seconds))
      return real.call('SET', key, value)
    end
    local reply = real.call(command, ...)
    -- A set has the order of its server's own seed.
    if command == 'SMEMBERS' then table.sort(reply) end
    return reply
  end,
  pcall = function(command, ...)
    if command == 'XADD' then return add(real.pcall, ...) end
    return real.pcall(command, ...)
  end,
}
