-- Take a step away from an attempt whose lease has run out: it is done again, or its outcome is unknown.
--
-- FROM     running (undoing) with a lease that ended before now
-- ARGV[1]  id  ARGV[2]  '' or 'u'  ARGV[3]  '1' if it may be done again  ARGV[4]  how often at most
-- ARGV[5]  outcome JSON if it is unknown  ARGV[6]  its error  ARGV[7]  '1' if that ends the run
-- ARGV[8]  '1' for an always step: while the run is ending it waits for its turn  ARGV[9]  grace ms
-- ARGV[10] ms that a person may be asked whether it happened, '' if nobody is  ARGV[11] what is asked, JSON  ARGV[12] the same for people
-- RETURNS  {what, next units}: 'again' it is, or will be, ready once more; 'unknown' it is recorded as such;
--          'asked' it waits for a person, and the run is suspended; 'no' the lease is alive. The next units were held back and need their messages
-- EVENTS   lease_lost, step_waiting | item_waiting, run_suspended, step_ended | item_ended | undo_ended, run_aborting
local i, p = ARGV[1], ARGV[2]
local ends = redis.call('ZSCORE', leases, p .. i)
if not ends
    -- guard: an attempt with a live lease keeps its step
    or tonumber(ends) > now then
  return {'no', ''}
end
local lost = redis.call('HINCRBY', steps, p .. 'lost:' .. i, 1)
emit('lease_lost', 'step', i, 'host', at(i), 'undo', p, 'owner', redis.call('HGET', steps, p .. 'owner:' .. i) or '',
  'lost', lost)
-- A new fence: whatever the lost attempt still says is refused.
local fence = tonumber(redis.call('HGET', steps, p .. 'fence:' .. i) or 0)
-- guard: an expired attempt is fenced off at once
redis.call('HSET', steps, p .. 'fence:' .. i, string.format('%.0f', math.max(fence + 1, clock[1] * 1000000 + clock[2])))
-- guard: an expired lease is removed
redis.call('ZREM', leases, p .. i)
local state = doing()
-- guard: a step that must not be repeated becomes unknown
if ARGV[3] == '1'
    -- guard: a step that keeps losing its workers becomes unknown
    and lost < tonumber(ARGV[4]) then
  -- guard: a lost step of an aborting run is not repeated; without it: true
  if state ~= 'aborting' then
    redis.call('HSET', steps, p .. 'status:' .. i, 'ready', p .. 'sent_until:' .. i, 0, p .. 'sent:' .. i, now)
    return {'again', ''}
  -- guard: a lost always step of an aborting run runs in its turn
  elseif ARGV[8] == '1' then
    redis.call('HDEL', steps, 'status:' .. i)
    if not whole_of(i) then
      redis.call('HINCRBY', run, 'left', -1)
    end
    return {'again', ''}
  end
end
-- guard: a lost undo is fenced by the next one; without it: true
if p == '' then
  -- It may wake up, and no attempt comes after it that would fence it off.
  redis.call('HINCRBY', run, 'lost', 1)
end
if p == ''
    -- guard: a person decides on a step that may have happened; without it: false
    and ARGV[10] ~= ''
    -- guard: a person is asked only in a running run
    and state == 'running' then
  redis.call('HSET', steps, 'status:' .. i, 'waiting', 'wait:' .. i, ARGV[11], 'delay:' .. i, ARGV[10])
  redis.call('ZADD', waits, now + tonumber(ARGV[10]), i)
  emit(kind(p, i) .. 'waiting', 'step', i, 'for', ARGV[12], 'until', now + tonumber(ARGV[10]))
  suspend('unknown', ARGV[6], '')
  return {'asked', ''}
end
local status = p == '' and 'unknown' or 'undo_failed'
redis.call('HSET', steps, p .. 'status:' .. i, status, p .. 'outcome:' .. i, ARGV[5], p .. 'ended:' .. i, now)
local total, err = ended(p, i, status, ARGV[6])
if not total then
  return {'unknown', next_units(i, tonumber(ARGV[9]))}
end
if ARGV[7] == '1'
    -- guard: a lost step does not abort a finishing run
    and state == 'running'
    and (total == 'failed' or total == 'unknown') then
  stop(i, err)
end
return {'unknown', ''}
