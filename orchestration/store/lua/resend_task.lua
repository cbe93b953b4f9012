-- Find out whether the message of an application's task is sent again: the worker that took it may have been killed.
--
-- FROM     waiting under the fence given, not begun under it
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  fence  ARGV[4]  grace ms, doubled each time up to ten minutes
-- RETURNS  {'1' where the message is to be sent now, else '0', time of the next look or '' for none}
-- EVENTS   message_resent
local i, p, grace = ARGV[1], ARGV[2], tonumber(ARGV[4])
local status, fence, begun, due, delay = unpack(redis.call('HMGET', steps, p .. 'status:' .. i, p .. 'fence:' .. i,
  p .. 'begun:' .. i, p .. 'task_sent_until:' .. i, p .. 'delay:' .. i))
-- guard: only the task of a waiting step is sent again
if status ~= 'waiting'
    -- guard: a stale attempt sends no task again
    or fence ~= ARGV[3]
    -- guard: a task that has begun is not sent again
    or string.match(begun or '', '^%d+') == fence then
  return {'0', ''}
end
local of, at = string.match(due or '', '^(%d+) (%d+)$')
local limit = tonumber(redis.call('ZSCORE', waits, p .. i))
local next_send = of == fence and tonumber(at) or limit - tonumber(delay) + grace
-- Where Redis's clock was set back, the time lies further ahead than any grace.
-- guard: a task whose message may still arrive is not sent again
if next_send > now and next_send <= now + 600000 + grace then
  return {'0', string.format('%.0f', next_send)}
end
local again = redis.call('HINCRBY', steps, p .. 'resent:' .. i, 1)
next_send = now + math.min(600000, grace * 2 ^ math.min(again, 20))
redis.call('HSET', steps, p .. 'task_sent_until:' .. i, fence .. ' ' .. string.format('%.0f', next_send))
emit('message_resent', 'step', i, 'undo', p, 'times', again)
return {'1', string.format('%.0f', next_send)}
