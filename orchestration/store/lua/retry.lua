-- Schedule a retry of a step after a transient failure.
--
-- FROM     running (undoing) or waiting under the fence given; not while the run is aborting
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  fence  ARGV[4]  delay ms  ARGV[5]  grace ms  ARGV[6]  error
-- ARGV[7]  '1' for an always step, which is retried also while the run is aborting
-- ARGV[8]  '1' if the attempt does not count against the retry limit: it did not act, or its outcome is not known yet
-- ARGV[9]  ms for which an outcome that is not known yet may be polled, '' for another cause
-- ARGV[10] service found down, or ''
-- RETURNS  1 scheduled, 0 the attempt is superseded, -1 the run is aborting: record a failure instead,
--          -2 the outcome was polled for too long: record unknown instead
-- EVENTS   step_retrying | item_retrying | undo_retrying
local i, p = ARGV[1], ARGV[2]
local status, fence = unpack(redis.call('HMGET', steps, p .. 'status:' .. i, p .. 'fence:' .. i))
-- guard: a stale attempt does not retry its step
if fence ~= ARGV[3] then
  return 0
end
if status == 'retrying' then
  return 1
end
-- guard: a step that has ended is not retried
if status ~= 'waiting' and status ~= (p == '' and 'running' or 'undoing') then
  return 0
end
if p == ''
    -- guard: an always step is retried in an aborting run
    and ARGV[7] ~= '1'
    -- guard: no other step is retried in an aborting run; without it: false
    and doing() == 'aborting' then
  return -1
end
local due = now + tonumber(ARGV[4])
if ARGV[9] ~= '' then
  redis.call('HSETNX', steps, p .. 'delayed:' .. i, now)
  -- guard: a step whose outcome is not known in time becomes unknown
  if due - tonumber(redis.call('HGET', steps, p .. 'delayed:' .. i)) > tonumber(ARGV[9]) then
    return -2
  end
end
if ARGV[10] ~= '' then
  redis.call('HSET', steps, p .. 'service:' .. i, ARGV[10])
  redis.call('HINCRBY', steps, p .. 'blocked:' .. i, 1)
end
-- guard: an attempt that did not act does not count for the limit of retries
if ARGV[8] == '1' then
  redis.call('HINCRBY', steps, p .. 'free_attempts:' .. i, 1)
end
redis.call('HSET', steps, p .. 'status:' .. i, 'retrying', p .. 'not_before:' .. i, due, p .. 'sent_until:' .. i,
           due + tonumber(ARGV[5]),
           p .. 'sent:' .. i, due, p .. 'delay:' .. i, ARGV[4])
-- guard: a retried step holds no lease
redis.call('ZREM', leases, p .. i)
-- guard: a retried step has no external wait
redis.call('ZREM', waits, p .. i)
emit(kind(p, i) .. 'retrying', 'step', i, 'error', ARGV[6], 'delay_ms', ARGV[4],
     'attempt', redis.call('HGET', steps, p .. 'attempts:' .. i), 'in_vain', ARGV[8])
return 1
