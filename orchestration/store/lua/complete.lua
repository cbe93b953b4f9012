-- Record the outcome of an attempt, or that no attempt will come; count the level; begin the abort.
--
-- FROM     running (undoing) or waiting under the fence given; without a fence: ready, retrying or waiting
-- ARGV[1]  id       ARGV[2]  '' or 'u'    ARGV[3]  fence or ''    ARGV[4]  status it goes to
-- ARGV[5]  outcome JSON    ARGV[6]  '1' if it proves that there was no effect
-- ARGV[7]  '1' if a bad status ends the run    ARGV[8]  error, or why it is skipped; '' if none
-- ARGV[9]  index of the next link of the chain, '' if none    ARGV[10]  grace ms
-- ARGV[11] name of the key that holds its data, '' if the outcome does
-- RETURNS  {'ok' | 'dup', advance, next units}, or {'stale', '', ''}: advance is 1 when the run can go on now,
--          the next units were held back and need their messages
-- EVENTS   step_ended | item_ended | undo_ended, step_skipped | item_skipped, run_aborting, level_started (next link)
local i, p, fence, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local state = redis.call('HGET', run, 'state')
local was, held = unpack(redis.call('HMGET', steps, p .. 'status:' .. i, p .. 'fence:' .. i))
local busy = p == '' and 'running' or 'undoing'
if fence ~= '' then
  -- guard: an outcome counts only under the current fence
  if held ~= fence then
    return {'stale', '', ''}
  end
  -- guard: an outcome counts once
  if was ~= busy and was ~= 'waiting' then
    return {'dup', can_advance(state), ''}
  end
-- guard: the sweeper does not end a claimed step
elseif was ~= 'ready' and was ~= 'retrying' and was ~= 'waiting' then
  return {'stale', '', ''}
end
redis.call('HSET', steps, p .. 'status:' .. i, status, p .. 'outcome:' .. i, ARGV[5], p .. 'ended:' .. i, now)
if ARGV[6] == '1' then
  redis.call('HSET', steps, p .. 'no_effect:' .. i, 1)
end
if ARGV[11] ~= '' then
  redis.call('HSET', steps, p .. 'data_key:' .. i, ARGV[11])
end
-- guard: an attempt that has ended holds no lease
redis.call('ZREM', leases, p .. i)
-- guard: a completed step is removed from the waits
redis.call('ZREM', waits, p .. i)
local total, err = ended(p, i, status, ARGV[8])
if not total then
  return {'ok', can_advance(state), next_units(i, tonumber(ARGV[10]))}
end
if ARGV[7] == '1'
    -- guard: a failure does not abort a finishing run
    -- guard: a failure aborts a suspended run; without it: state == 'running'
    and doing() == 'running'
    and (total == 'failed' or total == 'unknown') then
  stop(i, err)
  return {'ok', 1, ''}
end
local left = tonumber(redis.call('HGET', run, 'left'))
if ARGV[9] ~= ''
    -- guard: the next link of the chain waits for the rest of its level
    and left <= 0
    -- guard: an aborting run does not open the next link of the chain
    and state == 'running'
    -- guard: a failure does not open the next link of the chain
    and (status == 'changed' or status == 'unchanged') then
  -- The next link's message follows from this one's success; until its grace is over nobody else sends it.
  local level = redis.call('HINCRBY', run, 'level', 1)
  redis.call('HSET', run, 'left', 1)
  dispatched('', ARGV[9], tonumber(ARGV[10]))
  emit('level_started', 'level', level, 'steps', ARGV[9])
  return {'ok', 0, ''}
end
return {'ok', can_advance(state), ''}
