-- Release the lease of one delivery of an application's task, which has returned, failed, or asked for its own retry.
--
-- FROM     waiting under the fence given, with the lease of the owner given
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  fence  ARGV[4]  owner
-- ARGV[5]  'ended' if the message of the task's end was sent, 'again' if its own message returns to the queue, ''
--          if the task waits for its own retry
-- RETURNS  1 released, 0 the delivery holds no lease
-- EVENTS   none
local i, p = ARGV[1], ARGV[2]
local held, holder, begun = unpack(redis.call('HMGET', steps, p .. 'fence:' .. i, p .. 'owner:' .. i, p .. 'begun:' .. i))
-- guard: a delivery of a stale attempt releases no lease
if held ~= ARGV[3]
    -- guard: only the delivery that began a task releases its lease
    or holder ~= ARGV[4] then
  return 0
end
if ARGV[5] == 'ended' then
  redis.call('HSET', steps, p .. 'begun:' .. i, begun .. ' ended')
elseif ARGV[5] == 'again' then
  redis.call('HDEL', steps, p .. 'begun:' .. i)
end
return redis.call('ZREM', leases, p .. i)
