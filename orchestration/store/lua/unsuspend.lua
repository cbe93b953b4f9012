-- Resume a suspended run: steps that were dispatched and not claimed are due again, with a new claim timeout.
--
-- FROM     suspended for the reason given, in the epoch given
-- ARGV[1]  cause of the suspension: breaker, unknown, regressed  ARGV[2]  epoch  ARGV[3]  'u' while undoing, else ''
-- ARGV[4]  ms until the dispatched steps are due
-- ARGV[5]  id of the command, '' for none  ARGV[6]  actor  ARGV[7]  reason, then the ids of the batch
-- RETURNS  1 resumed, 0 a concurrent transition was first
-- EVENTS   command, run_resumed
local state, was, hold, epoch = unpack(redis.call('HMGET', run, 'state', 'suspended_state', 'hold', 'epoch'))
-- guard: only a suspended run is released
if state ~= 'suspended'
    -- guard: a breaker does not release a run that waits for a person
    or hold ~= ARGV[1]
    -- guard: a run is released only in the epoch that the worker has read
    or (epoch or '0') ~= ARGV[2]
    -- guard: a command releases a run once
    or (ARGV[5] ~= '' and handled(ARGV[5])) then
  return 0
end
local p, due = ARGV[3], now + tonumber(ARGV[4])
for n = 8, #ARGV do
  local i = ARGV[n]
  local status = redis.call('HGET', steps, p .. 'status:' .. i)
  -- guard: a release does not change a running step; without it: true
  if status == 'ready' or status == 'retrying' then
    redis.call('HSET', steps, p .. 'sent:' .. i, due, p .. 'sent_until:' .. i, due, p .. 'not_before:' .. i, due,
               p .. 'delay:' .. i, ARGV[4])
  end
end
redis.call('HSET', run, 'state', was)
lift()
if ARGV[5] ~= '' then
  -- Handled atomically with the resume: a later reader would refuse the command of a run that is not suspended.
  emit('command', 'kind', 'resumed', 'actor', ARGV[6], 'reason', ARGV[7])
  answer(ARGV[5], 'done')
end
emit('run_resumed', 'for', hold)
return 1
