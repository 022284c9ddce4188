-- unless_alive: in front of a script that ends a call of an instance that seems dead: it returns 0 and does nothing
-- where that instance has shown a sign of life since it was found silent.
--
-- KEYS  those of the script, then instances
-- ARGV  those of the script, then the instance, its last sign of life as it was read
--
-- A sweeper's command may wait in a Redis that hangs, and run when the gateway is long back.

local sign_read = table.remove(ARGV)
local sign = redis.call('ZSCORE', table.remove(KEYS), table.remove(ARGV))
-- Who is not watched at all is not alive: it was forgotten, or Redis is blank.
if sign and sign ~= sign_read then return 0 end
