-- Amounts are strings of 64-bit integers: Lua's numbers are doubles, so only HINCRBY may change them.

-- The negated amount; HINCRBY takes no "-0".
local function negative(amount)
  if amount == '0' then return '0' end
  if string.sub(amount, 1, 1) == '-' then return string.sub(amount, 2) end
  return '-' .. amount
end
