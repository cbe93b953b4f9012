-- Begin an application's task: one delivery of its message, on a worker of the application, under a lease.
--
-- FROM     waiting under the fence given, before its time limit; forward not while the run is aborting, backward before
--          the time limit of all compensations
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  fence  ARGV[4]  owner, unique to this delivery  ARGV[5]  lease ms
-- ARGV[6]  number of the task's own retries before this delivery
-- ARGV[7]  '1' for an always step, which begins also while the run is aborting
-- RETURNS  {'ok', ms until the time limit}, {'early', reason}: ask again, or {'no', reason}
-- EVENTS   task_started | undo_task_started
local i, p, fence, owner, tries = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6])
local status, held, begun, holder = unpack(redis.call('HMGET', steps,
  p .. 'status:' .. i, p .. 'fence:' .. i, p .. 'begun:' .. i, p .. 'owner:' .. i))
-- guard: a task begins only under the current fence
if held ~= fence then
  return {'no', 'another attempt took its place'}
end
-- The message is sent before the step is parked.
-- guard: a task waits until its step is parked
if status == (p == '' and 'running' or 'undoing') then
  return {'early', 'its step is not parked yet'}
end
-- guard: a task of a step that has ended does not begin
if status ~= 'waiting' then
  return {'no', 'its step is ' .. (status or 'gone')}
end
local limit = tonumber(redis.call('ZSCORE', waits, p .. i) or 0)
-- guard: a task does not begin after its time limit
if limit <= now then
  return {'no', 'its time limit has passed'}
end
if p == ''
    -- guard: a task of an always step begins in an aborting run
    and ARGV[7] ~= '1'
    -- guard: no other task begins in an aborting run; without it: false
    and doing() == 'aborting' then
  return {'no', 'its run is being ended'}
end
local leased = redis.call('ZSCORE', leases, p .. i)
local of, expected = string.match(begun or '', '^(%d+) (%d+)')
-- The same delivery begins again where the reply to its first call was lost.
-- guard: a repeated call of the same delivery is accepted; without it: true
if not (leased and holder == owner) then
  -- guard: a copy of a message does not begin the task again
  if of == fence and tries < tonumber(expected) then
    return {'no', 'its message came twice'}
  end
  -- guard: a retry of a task waits for the end of the previous delivery
  if leased then
    return {'early', 'an earlier delivery still runs'}
  end
  if p == 'u'
      -- guard: no task of a compensation begins after the time limit of all compensations; without it: false
      and compensation_is_late() then
    return {'no', 'the time limit of the compensations has passed'}
  end
  redis.call('HSET', steps, p .. 'begun:' .. i, fence .. ' ' .. (tries + 1), p .. 'owner:' .. i, owner)
  emit((p == '' and '' or 'undo_') .. 'task_started', 'step', i, 'owner', owner, 'retries', tries)
end
redis.call('ZADD', leases, now + tonumber(ARGV[5]), p .. i)
return {'ok', limit - now}
