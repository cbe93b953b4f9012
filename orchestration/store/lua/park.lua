-- Park a step that waits for an external event: a person, another run, or a task of an application.
--
-- FROM     running (undoing) under the fence given
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  fence  ARGV[4]  timeout of the wait, ms  ARGV[5]  the wait, JSON
-- ARGV[6]  the same, for people
-- RETURNS  1 parked, 0 the attempt is superseded
-- EVENTS   step_waiting | item_waiting | undo_waiting
local i, p = ARGV[1], ARGV[2]
local status, fence = unpack(redis.call('HMGET', steps, p .. 'status:' .. i, p .. 'fence:' .. i))
-- guard: a stale attempt does not park its step
if fence ~= ARGV[3] then
  return 0
end
if status == 'waiting' then
  return 1
end
-- guard: a step that has ended is not parked
if status ~= (p == '' and 'running' or 'undoing') then
  return 0
end
redis.call('HSET', steps, p .. 'status:' .. i, 'waiting', p .. 'wait:' .. i, ARGV[5], p .. 'delay:' .. i, ARGV[4])
-- guard: a parked step holds no lease
redis.call('ZREM', leases, p .. i)
redis.call('ZADD', waits, now + tonumber(ARGV[4]), p .. i)
emit(kind(p, i) .. 'waiting', 'step', i, 'for', ARGV[6], 'until', now + tonumber(ARGV[4]))
return 1
