-- Record the outcome of a step, count its level, and abort the run or open the next link of the chain.
--
-- FROM     running (undoing) or waiting under the fence given; without a fence, as the sweeper ends a step that no
--          attempt will claim: ready, retrying or waiting
-- ARGV[1]  id       ARGV[2]  '' or 'u'    ARGV[3]  fence or ''    ARGV[4]  new status
-- ARGV[5]  outcome JSON    ARGV[6]  '1' if the outcome proves that there was no effect
-- ARGV[7]  '1' if a failure aborts the run    ARGV[8]  error, or reason of a skip; '' if none
-- ARGV[9]  index of the next link of the chain, '' if none    ARGV[10]  grace ms
-- ARGV[11] name of the key that holds the data, '' if the outcome does
-- ARGV[12] owner of the next link, which the caller claims with this outcome, '' if the caller does not claim the link
-- ARGV[13] its task id    ARGV[14] its host    ARGV[15] '1' if an effect of the link belongs to one host
-- RETURNS  {'ok' | 'dup', advance, next units, claim of the next link or nothing}, or {'stale', '', ''}: advance is 1
--          where the run can continue now; the next units were held back, and the caller sends their messages
-- EVENTS   step_ended | item_ended | undo_ended, step_skipped | item_skipped, run_aborting, level_started and
--          step_started (next link)
local i, p, fence, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local state, before, left, version, level, epoch = unpack(redis.call('HMGET', run, 'state', 'suspended_state', 'left',
  'version', 'level', 'epoch'))
local was, held = unpack(redis.call('HMGET', steps, p .. 'status:' .. i, p .. 'fence:' .. i))
local busy = p == '' and 'running' or 'undoing'
if fence ~= '' then
  -- guard: an outcome counts only under the current fence
  if held ~= fence then
    return {'stale', '', ''}
  end
  -- guard: an outcome counts once
  if was ~= busy and was ~= 'waiting' then
    -- The reply to the first call was lost, and with it the claim of the next link.
    local link, owner = unpack(redis.call('HMGET', steps, 'status:' .. ARGV[9], 'owner:' .. ARGV[9]))
    -- guard: a worker that repeats an outcome gets the claim of the next link again
    if ARGV[12] ~= '' and link == 'running' and owner == ARGV[12] then
      return {'dup', 0, '', claim_step(ARGV[9], '', ARGV[12], ARGV[13], tonumber(ARGV[10]), ARGV[14], ARGV[15] == '1',
                                       version, epoch)}
    end
    return {'dup', can_advance(state), ''}
  end
-- guard: the sweeper does not end a claimed step
elseif was ~= 'ready' and was ~= 'retrying' and was ~= 'waiting' then
  return {'stale', '', ''}
end
local fields = {p .. 'status:' .. i, status, p .. 'outcome:' .. i, ARGV[5], p .. 'ended:' .. i, now}
if ARGV[6] == '1' then
  fields[#fields + 1], fields[#fields + 2] = p .. 'no_effect:' .. i, 1
end
if ARGV[11] ~= '' then
  fields[#fields + 1], fields[#fields + 2] = p .. 'data_key:' .. i, ARGV[11]
end
redis.call('HSET', steps, unpack(fields))
if was == busy then
  -- guard: an attempt that has ended holds no lease
  redis.call('ZREM', leases, p .. i)
elseif was == 'waiting' then
  -- guard: a completed step has no external wait
  redis.call('ZREM', waits, p .. i)
end
local total, err, counted = status, ARGV[8], true
if whole_of(i) or status == 'skipped' then
  total, err = ended(p, i, status, ARGV[8])
  if not total then
    return {'ok', can_advance(state), next_units(i)}
  end
  left, version = unpack(redis.call('HMGET', run, 'left', 'version'))
else
  left, version, counted = left - 1, version + 1, false
  emit_as(version, kind(p, i) .. 'ended', 'step', i, 'status', status, 'error', err)
end
if ARGV[9] ~= ''
    -- guard: the next link of a chain waits for the end of the previous level
    and tonumber(left) <= 0
    -- guard: the next link of a chain does not begin in an aborting run
    and state == 'running'
    -- guard: the next link of a chain does not begin after a failure
    and (status == 'changed' or status == 'unchanged') then
  -- Celery sends the message of the next link after this success; the sweeper resends it only after the grace.
  local opened = {'left', 1, 'level', level + 1}
  emit_as(version + 1, 'level_started', 'level', level + 1, 'steps', ARGV[9])
  if ARGV[12] ~= '' then
    local claim = claim_step(ARGV[9], '', ARGV[12], ARGV[13], tonumber(ARGV[10]), ARGV[14], ARGV[15] == '1',
                             version + 1, epoch, true, opened)
    if claim[1] == 'ok' then
      return {'ok', 0, '', claim}
    end
  end
  redis.call('HSET', run, 'version', version + 1, unpack(opened))
  dispatched('', ARGV[9], tonumber(ARGV[10]))
  return {'ok', 0, ''}
end
if not counted then
  redis.call('HSET', run, 'left', left, 'version', version)
end
local doing_now = state == 'suspended' and before or state
if ARGV[7] == '1'
    -- guard: a failure does not abort a finishing run
    -- guard: a failure aborts a suspended run; without it: state == 'running'
    and doing_now == 'running'
    and (total == 'failed' or total == 'unknown') then
  stop(i, err)
  return {'ok', 1, ''}
end
if state == 'aborting' then
  return {'ok', can_advance(state), ''}
end
return {'ok', tonumber(left) <= 0 and 1 or 0, ''}
