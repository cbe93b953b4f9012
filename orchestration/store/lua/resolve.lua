-- Resolve a step whose outcome a person knows and the record does not, once.
--
-- FROM     a step that waits for a resolution; in an ended run: done and skip from a step that is not done, undone and
--          abandon from a step that was not undone
-- ARGV[1]  id of the command  ARGV[2]  actor  ARGV[3]  note  ARGV[4]  done, skip, undone or abandon  ARGV[5]  id
-- RETURNS  'done', 'old' for a command that was handled before, or the reason of a refusal, for people
-- EVENTS   command, step_resolved, run_undoing (to end again without the step)
-- guard: a resolution is carried out once
if handled(ARGV[1]) then
  return 'old'
end
local what, i = ARGV[4], ARGV[5]
local state = redis.call('HGET', run, 'state')
local status, undo, parked, keeps = unpack(redis.call('HMGET', steps, 'status:' .. i, 'ustatus:' .. i, 'wait:' .. i,
                                                      'attempts:' .. i))
status = status or 'pending'
local resting = state == 'failed' or state == 'partial' or state == 'undo_failed' or state == 'undone'
local asked = status == 'waiting' and parked and string.find(parked, '"unknown"', 1, true)
local why
if asked then
  -- guard: the first resolution of a step counts
  if redis.call('HSETNX', steps, 'decision:' .. i, what) == 0 then
    why = 'the step was resolved before: ' .. redis.call('HGET', steps, 'decision:' .. i)
  end
-- guard: in a live run only a step that waits for a resolution is resolved
elseif not resting then
  why = 'the run is ' .. state .. ', and the step is ' .. status
elseif what == 'done' or what == 'skip' then
  if state ~= 'failed' and state ~= 'partial' then
    why = 'the run is ' .. state .. ': only a step that is left over can be resolved'
  -- guard: a step that is done is not resolved as done or skipped; without it: status == 'skipped' and redis.call('HEXISTS', steps, 'tainted:' .. i) == 0
  elseif status == 'changed' or status == 'unchanged' or (status == 'skipped' and redis.call('HEXISTS', steps, 'tainted:' .. i) == 0) then
    why = 'the step is ' .. status
  end
-- guard: a step that was compensated is not resolved as undone or abandoned
elseif undo ~= 'undo_failed' and undo ~= 'held_back' and undo ~= 'not_undoable' and not (keeps and not undo and what == 'undone') then
  why = 'the step is ' .. status .. (undo and ' and ' .. undo or ' and has no failed undo')
elseif what == 'abandon' and undo == 'not_undoable' then
  why = 'the step is left over already'
end
emit('command', 'kind', why and 'refuse' or 'resolve', 'actor', ARGV[2], 'reason', why or ARGV[3], 'step', i)
if why then
  return answer(ARGV[1], why)
end
emit('step_resolved', 'step', i, 'as', what, 'actor', ARGV[2])
local said = what .. ' by ' .. ARGV[2] .. (ARGV[3] ~= '' and ': ' .. ARGV[3] or '')
if asked then
  -- The coordinator records the outcome that follows from the resolution.
  redis.call('HSET', steps, 'decided_by:' .. i, ARGV[2], 'note:' .. i, ARGV[3], 'decided_at:' .. i, now)
  if what == 'abandon' then
    redis.call('HSET', steps, 'ustatus:' .. i, 'not_undoable', 'ureason:' .. i, said)
  end
elseif what == 'done' or what == 'skip' then
  redis.call('HDEL', steps, 'tainted:' .. i)
  redis.call('HSET', steps, 'status:' .. i, what == 'done' and 'changed' or 'skipped', 'reason:' .. i, said,
             'ended:' .. i, now)
else
  redis.call('HDEL', steps, 'uoutcome:' .. i)
  redis.call('HSET', steps, 'ustatus:' .. i, what == 'undone' and 'undone' or 'not_undoable', 'ureason:' .. i, said)
  if state == 'undo_failed' then
    redis.call('HSET', run, 'state', 'undoing', 'undo_level', 0, 'left', 0)
    redis.call('HINCRBY', run, 'epoch', 1)
    redis.call('HDEL', run, 'ended')
    emit('run_undoing')
  end
end
return answer(ARGV[1], 'done')
