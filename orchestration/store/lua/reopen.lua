-- Resume an ended run from the first step that is not done, as a person has commanded.
--
-- FROM     failed, partial or cancelled, in the epoch given
-- ARGV[1]  id of the command  ARGV[2]  actor  ARGV[3]  reason  ARGV[4]  epoch  ARGV[5]  last completed level
-- ARGV[6]  '1' if a failure keeps the effects of completed steps, then the steps and units to run again
-- RETURNS  'done', 'old' for a command that was handled before, or the reason of a refusal, for people
-- EVENTS   command, run_resumed
-- guard: a resume is carried out once
if handled(ARGV[1]) then
  return 'old'
end
local state, epoch = unpack(redis.call('HMGET', run, 'state', 'epoch'))
-- guard: only a failed or partial or cancelled run runs forward again
if (state ~= 'failed' and state ~= 'partial' and state ~= 'cancelled')
    -- guard: a run is resumed only in the epoch that the worker has read
    or (epoch or '0') ~= ARGV[4] then
  local why = 'the run is ' .. state
  emit('command', 'kind', 'refuse', 'actor', ARGV[2], 'reason', why)
  return answer(ARGV[1], why)
end
emit('command', 'kind', 'resume', 'actor', ARGV[2], 'reason', ARGV[3])
-- The journal of earlier attempts stays, since an undo restores the state before the first attempt.
for n = 7, #ARGV do
  local i = ARGV[n]
  local tries = redis.call('HGET', steps, 'attempts:' .. i)
  if tries then
    redis.call('HSET', steps, 'free_attempts:' .. i, tries)
  end
  local apart = redis.call('HGET', steps, 'data_key:' .. i)
  if apart then
    redis.call('DEL', string.sub(run, 1, -4) .. 'data:' .. apart)
  end
  for _, name in ipairs({'status:', 'ended:', 'outcome:', 'reason:', 'tainted:', 'no_effect:', 'not_before:', 'resent:',
                         'lost:', 'sent:', 'sent_until:', 'wait:', 'decision:', 'decided_by:', 'note:', 'decided_at:',
                         'data_key:', 'delayed:', 'fan_out_failed:', 'fan_out_cancelled:', 'canary_failed:',
                         'error:', 'ustatus:', 'uoutcome:', 'ureason:'}) do
    redis.call('HDEL', steps, name .. i)
  end
end
for n = 7, #ARGV do
  -- The changed units of a fanned-out step are done, and count again.
  local units, changed = tonumber(redis.call('HGET', steps, 'fan_out:' .. ARGV[n]) or 0), 0
  for u = 0, units - 1 do
    if redis.call('HGET', steps, 'status:' .. ARGV[n] .. '.' .. u) == 'changed' then
      changed = changed + 1
    end
  end
  if changed > 0 then
    redis.call('HSET', steps, 'fan_out_changed:' .. ARGV[n], changed)
  else
    redis.call('HDEL', steps, 'fan_out_changed:' .. ARGV[n])
  end
end
redis.call('HDEL', run, 'cause', 'err', 'err_step', 'ended', 'keep', 'undo_level', 'undo_deadline', 'deadline')
redis.call('HSET', run, 'state', 'running', 'level', ARGV[5], 'left', 0)
if ARGV[6] == '1' then
  redis.call('HSET', run, 'keep', 1)
end
local timeout = tonumber(redis.call('HGET', run, 'timeout') or '')
if timeout then
  redis.call('HSET', run, 'deadline', now + timeout)
end
redis.call('HINCRBY', run, 'epoch', 1)
emit('run_resumed', 'actor', ARGV[2])
return answer(ARGV[1], 'done')
