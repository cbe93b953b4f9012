-- Carry out a command of a person, once.
--
-- FROM     refuse: any, for the reason given; cancel: pending, running, or suspended there; undo: an ended run;
--          approve, reject: a step that waits for a person
-- ARGV[1]  id of the command in the commands' stream  ARGV[2]  kind  ARGV[3]  actor  ARGV[4]  reason
-- ARGV[5]  '1' to keep the effects of completed steps (cancel)  ARGV[6]  level above the highest (undo), then the
--          ids whose failed or held back undo is tried again; or the id that is approved or rejected
-- RETURNS  'done', 'old' for a command that was handled before, or the reason of a refusal, for people
--          (also in the run's field `answer`)
-- EVENTS   command, of kind refuse if the command is refused, and those of the transition that follows
-- guard: a command is carried out once
if handled(ARGV[1]) then
  return 'old'
end
local state = redis.call('HGET', run, 'state')

-- Records a command that is not carried out as a refusal, and answers with the reason.
local function refuse(why)
  emit('command', 'kind', 'refuse', 'actor', ARGV[3], 'reason', why)
  return answer(ARGV[1], why)
end

if ARGV[2] == 'approve' or ARGV[2] == 'reject' then
  local id, why = ARGV[7] or '', nil
  local status = redis.call('HGET', steps, 'status:' .. id) or 'pending'
  -- guard: only a waiting step is approved or rejected
  if status ~= 'waiting' then
    why = 'the step does not wait for an approval: its state is ' .. status
  -- guard: the first decision on a step counts
  elseif redis.call('HSETNX', steps, 'decision:' .. id, ARGV[2]) == 0 then
    why = 'the step was decided before: ' .. redis.call('HGET', steps, 'decision:' .. id)
  end
  emit('command', 'kind', why and 'refuse' or ARGV[2], 'actor', ARGV[3], 'reason', why or ARGV[4], 'step', id)
  if why then
    return answer(ARGV[1], why)
  end
  -- The coordinator records the outcome that follows from the decision.
  redis.call('HSET', steps, 'decided_by:' .. id, ARGV[3], 'note:' .. id, ARGV[4], 'decided_at:' .. id, now)
  return answer(ARGV[1], 'done')
end
if ARGV[2] == 'cancel' then
  -- guard: a cancel does not change a run that has ended
  if state ~= 'pending' and doing() ~= 'running' then
    return refuse('the run is ' .. state)
  end
  emit('command', 'kind', ARGV[2], 'actor', ARGV[3], 'reason', ARGV[4])
  if state == 'pending' then
    redis.call('HSET', run, 'state', 'cancelled', 'cause', 'cancel', 'err', ARGV[4], 'ended', now)
    for i = 0, tonumber(redis.call('HGET', run, 'steps')) - 1 do
      redis.call('HSET', steps, 'status:' .. i, 'not_run')
    end
    emit('run_ended', 'state', 'cancelled', 'cause', 'cancel')
    return answer(ARGV[1], 'done')
  end
  redis.call('HSET', run, 'state', 'aborting', 'cause', 'cancel', 'err', ARGV[4])
  lift()
  if ARGV[5] == '1' then
    redis.call('HSET', run, 'keep', 1)
  end
  emit('run_aborting', 'cause', 'cancel', 'actor', ARGV[3])
  return answer(ARGV[1], 'done')
end
if ARGV[2] == 'undo' then
  -- guard: a run that was undone is not undone again
  if state ~= 'succeeded' and state ~= 'partial' and state ~= 'failed' and state ~= 'undo_failed' then
    return refuse('the run is ' .. state)
  end
  emit('command', 'kind', ARGV[2], 'actor', ARGV[3], 'reason', ARGV[4])
  for n = 7, #ARGV do
    redis.call('HDEL', steps, 'ustatus:' .. ARGV[n], 'ureason:' .. ARGV[n], 'unot_before:' .. ARGV[n],
               'uattempts:' .. ARGV[n], 'uresent:' .. ARGV[n],
               'ulost:' .. ARGV[n], 'ufree_attempts:' .. ARGV[n], 'udelayed:' .. ARGV[n])
  end
  redis.call('HSET', run, 'state', 'undoing', 'undo_level', ARGV[6], 'left', 0)
  redis.call('HINCRBY', run, 'epoch', 1)
  redis.call('HSETNX', run, 'cause', 'operator')
  redis.call('HDEL', run, 'ended', 'undo_deadline', 'keep')
  emit('run_undoing')
  return answer(ARGV[1], 'done')
end
return refuse(ARGV[2] == 'refuse' and ARGV[4] or 'unknown command: ' .. ARGV[2])
