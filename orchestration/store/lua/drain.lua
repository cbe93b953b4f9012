-- Cancel the steps of an aborting run that were dispatched and not claimed. An always step waits for its turn.
-- A step whose attempt was lost becomes unknown, since its effect may have happened.
--
-- FROM     ready, retrying, or waiting; a unit that was held back; in a run that is aborting
-- ARGV     id, '1' for an always step, for each
-- RETURNS  1 where no attempt runs any more, else 0
-- EVENTS   step_ended | item_ended (cancelled, unknown) for each
-- guard: a drain cancels nothing in a run that is not aborting
if redis.call('HGET', run, 'state') ~= 'aborting' then
  return 0
end
for n = 1, #ARGV, 2 do
  local i = ARGV[n]
  local status = redis.call('HGET', steps, 'status:' .. i)
  -- guard: a drain cancels units that were held back; without it: false
  local held_back = not status and whole_of(i)
  -- guard: a drain does not cancel a claimed step; without it: true
  if status == 'ready' or status == 'retrying' or status == 'waiting' or held_back then
    -- guard: a drain does not cancel an always step
    if ARGV[n + 1] == '1' then
      redis.call('HDEL', steps, 'status:' .. i, 'decision:' .. i, 'sent:' .. i, 'sent_until:' .. i)
      redis.call('ZREM', waits, i)
      if not whole_of(i) then
        redis.call('HINCRBY', run, 'left', -1)
      end
    else
      local final, why = 'cancelled', 'the run was aborted before the step began'
      if status == 'waiting' then
        why = 'the run was aborted while the step waited'
      elseif redis.call('HEXISTS', steps, 'attempts:' .. i) == 1 then
        local tried, in_vain = unpack(redis.call('HMGET', steps, 'attempts:' .. i, 'blocked:' .. i))
        -- guard: a step whose service was down at each attempt had no effect
        if status == 'retrying' and tried == in_vain then
          redis.call('HSET', steps, 'no_effect:' .. i, 1)  -- its service was down: nothing was ever begun
        end
        why = 'the run was aborted before the step was retried'
        -- guard: a drained step with a lost attempt is closed
        if status == 'ready' then
          redis.call('HINCRBY', run, 'lost', 1)
        end
        -- guard: a step with a lost attempt becomes unknown instead of cancelled
        if status == 'ready'
            -- guard: a step whose outcome is not known yet becomes unknown instead of cancelled
            or redis.call('HEXISTS', steps, 'delayed:' .. i) == 1 then
          final, why = 'unknown', (status == 'ready' and 'its worker was lost' or 'its outcome was not known yet') .. ', and ' .. why
        end
      end
      redis.call('HSET', steps, 'status:' .. i, final, 'reason:' .. i, why, 'ended:' .. i, now)
      redis.call('ZREM', waits, i)
      ended('', i, final, final == 'unknown' and why or '')
    end
  end
end
return can_advance('aborting')
