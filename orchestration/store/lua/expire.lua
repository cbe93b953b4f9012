-- Expire a lease: the attempt is fenced off, and its step is retried, becomes unknown, or waits for a person.
--
-- FROM     running (undoing), or waiting for an application's task, with an expired lease
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  '1' if the step may be repeated  ARGV[4]  limit of lost attempts
-- ARGV[5]  outcome JSON for unknown  ARGV[6]  its error  ARGV[7]  '1' if a failure aborts the run
-- ARGV[8]  '1' for an always step, which waits for its turn while the run is aborting
-- ARGV[9]  ms to wait for a person to resolve the step, '' for no wait  ARGV[10] the wait, JSON  ARGV[11] the same,
--          for people
-- RETURNS  {what, next units}: 'again' the step is ready, or will be; 'unknown' the outcome is recorded;
--          'asked' the step waits for a person, and the run is suspended; 'no' the lease is live. The next units were
--          held back, and the caller sends their messages
-- EVENTS   lease_lost, step_waiting | item_waiting, run_suspended, step_ended | item_ended | undo_ended, run_aborting
local i, p = ARGV[1], ARGV[2]
local ends = redis.call('ZSCORE', leases, p .. i)
if not ends
    -- guard: an attempt whose lease has not expired keeps its step
    or tonumber(ends) > now then
  return {'no', ''}
end
local lost = redis.call('HINCRBY', steps, p .. 'lost:' .. i, 1)
emit('lease_lost', 'step', i, 'host', at(i), 'undo', p, 'owner', redis.call('HGET', steps, p .. 'owner:' .. i) or '',
  'lost', lost)
-- Under a new fence, any later write of the lost attempt is refused.
local fence = tonumber(redis.call('HGET', steps, p .. 'fence:' .. i) or 0)
-- guard: the fence rises when a lease expires
redis.call('HSET', steps, p .. 'fence:' .. i, string.format('%.0f', math.max(fence + 1, clock[1] * 1000000 + clock[2])))
-- guard: an expired lease is removed
redis.call('ZREM', leases, p .. i)
-- The time limit of an application's task, whose step waits while the task runs.
local limit = redis.call('ZSCORE', waits, p .. i)
-- guard: the external wait of a lost task is removed
redis.call('ZREM', waits, p .. i)
local state = doing()
-- guard: a step that must not be repeated becomes unknown
if ARGV[3] == '1'
    -- guard: a step with too many lost attempts becomes unknown
    and lost < tonumber(ARGV[4])
    -- guard: a task that is lost after its time limit is not repeated
    and not (limit and tonumber(limit) <= now) then
  -- guard: an aborting run does not repeat a lost attempt; without it: true
  if state ~= 'aborting' then
    redis.call('HSET', steps, p .. 'status:' .. i, 'ready', p .. 'sent_until:' .. i, 0, p .. 'sent:' .. i, now)
    return {'again', ''}
  -- guard: an always step with a lost attempt runs again in the finishing run
  elseif ARGV[8] == '1' then
    redis.call('HDEL', steps, 'status:' .. i, 'sent_until:' .. i)
    if not whole_of(i) then
      redis.call('HINCRBY', run, 'left', -1)
    end
    return {'again', ''}
  end
end
-- guard: a lost attempt at a compensation closes no step; without it: true
if p == '' then
  -- The lost attempt may resume on its host, where no later attempt of the step will fence it off.
  redis.call('HINCRBY', run, 'lost', 1)
end
if p == ''
    -- guard: a plan can let a person decide about a step that may have acted; without it: false
    and ARGV[9] ~= ''
    -- guard: a person is asked only in a running run
    and state == 'running' then
  redis.call('HSET', steps, 'status:' .. i, 'waiting', 'wait:' .. i, ARGV[10], 'delay:' .. i, ARGV[9])
  redis.call('ZADD', waits, now + tonumber(ARGV[9]), i)
  emit(kind(p, i) .. 'waiting', 'step', i, 'for', ARGV[11], 'until', now + tonumber(ARGV[9]))
  suspend('unknown', ARGV[6], '')
  return {'asked', ''}
end
local status = p == '' and 'unknown' or 'undo_failed'
redis.call('HSET', steps, p .. 'status:' .. i, status, p .. 'outcome:' .. i, ARGV[5], p .. 'ended:' .. i, now)
local total, err = ended(p, i, status, ARGV[6])
if not total then
  return {'unknown', next_units(i)}
end
if ARGV[7] == '1'
    -- guard: a lost attempt does not abort a finishing run
    and state == 'running'
    and (total == 'failed' or total == 'unknown') then
  stop(i, err)
end
return {'unknown', ''}
