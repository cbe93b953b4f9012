-- Journal the rendered parameters and the state for the undo, before the attempt acts. The first entry counts.
--
-- FROM     an attempt that holds the step's current fence
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  fence  ARGV[4]  rendered JSON or ''  ARGV[5]  before JSON or ''
-- RETURNS  1 journalled, 0 the attempt is superseded
-- EVENTS   none, since the attempt has not acted yet
local i, p = ARGV[1], ARGV[2]
-- guard: a journal entry needs the current fence
if redis.call('HGET', steps, p .. 'fence:' .. i) ~= ARGV[3]
    -- guard: an attempt that has ended writes no journal
    or not redis.call('ZSCORE', leases, p .. i) then
  return 0
end
if ARGV[4] ~= '' then
  -- guard: the first journal entry counts; without it: redis.call('HSET', steps, p .. 'rendered:' .. i, ARGV[4])
  redis.call('HSETNX', steps, p .. 'rendered:' .. i, ARGV[4])
end
if ARGV[5] ~= '' then
  -- guard: the first journal entry counts; without it: redis.call('HSET', steps, p .. 'before:' .. i, ARGV[5])
  redis.call('HSETNX', steps, p .. 'before:' .. i, ARGV[5])
  -- The journalled state is that of the host of this claim.
  redis.call('HSET', steps, p .. 'journalled:' .. i, 1)
end
return 1
