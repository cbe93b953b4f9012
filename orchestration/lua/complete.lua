-- Record the outcome of an attempt, or that no attempt will come; count the level; begin the abort.
--
-- FROM     running (undoing) under the fence given; without a fence: ready or retrying
-- ARGV[1]  index    ARGV[2]  '' or 'u'    ARGV[3]  fence or ''    ARGV[4]  status it goes to
-- ARGV[5]  outcome JSON    ARGV[6]  '1' if it proves that there was no effect
-- ARGV[7]  '1' if a bad status ends the run    ARGV[8]  error, '' if none
-- ARGV[9]  index of the next link of the chain, '' if none    ARGV[10]  grace ms
-- RETURNS  {'ok' | 'dup', advance}, or {'stale', ''}: advance is 1 when the run can go on now
-- EVENTS   step_ended | undo_ended, run_aborting, level_started (next link)
local i, p, fence, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local state = redis.call('HGET', run, 'state')
local was, held = unpack(redis.call('HMGET', steps, p .. 's:' .. i, p .. 'f:' .. i))
local busy = p == '' and 'running' or 'undoing'
if fence ~= '' then
  if held ~= fence then
    return {'stale', ''}
  end
  if was ~= busy then
    return {'dup', can_advance(state)}
  end
elseif was ~= 'ready' and was ~= 'retrying' then
  return {'stale', ''}
end
redis.call('HSET', steps, p .. 's:' .. i, status, p .. 'o:' .. i, ARGV[5], p .. 'e:' .. i, now)
if ARGV[6] == '1' then
  redis.call('HSET', steps, p .. 'z:' .. i, 1)
end
redis.call('ZREM', leases, p .. i)
local left = redis.call('HINCRBY', run, 'left', -1)
emit(p == '' and 'step_ended' or 'undo_ended', 'step', i, 'status', status, 'error', ARGV[8])
if ARGV[7] == '1' and state == 'running' and (status == 'failed' or status == 'unknown') then
  redis.call('HSET', run, 'state', 'aborting', 'cause', 'failure', 'err_step', i, 'err', ARGV[8])
  emit('run_aborting', 'cause', 'failure', 'step', i)
  return {'ok', 1}
end
if ARGV[9] ~= '' and left <= 0 and state == 'running' and (status == 'changed' or status == 'unchanged') then
  -- The next link's message follows from this one's success; until its grace is over nobody else sends it.
  local level = redis.call('HINCRBY', run, 'level', 1)
  redis.call('HSET', run, 'left', 1)
  dispatched('', ARGV[9], tonumber(ARGV[10]))
  emit('level_started', 'level', level, 'steps', ARGV[9])
  return {'ok', 0}
end
return {'ok', can_advance(state)}
