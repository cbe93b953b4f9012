-- Let a suspended run go on: what was dispatched and not claimed is due again, and its time begins anew.
--
-- FROM     suspended for the reason given, in the epoch given
-- ARGV[1]  for what it was: breaker, unknown, regressed  ARGV[2]  epoch  ARGV[3]  'u' while undoing, else ''
-- ARGV[4]  ms until what was dispatched is due
-- ARGV[5]  id of the command that asks for it, '' if none does  ARGV[6]  actor  ARGV[7]  reason, then the ids of its batch
-- RETURNS  1 it goes on, 0 somebody else was first
-- EVENTS   command, run_resumed
local state, was, hold, epoch = unpack(redis.call('HMGET', run, 'state', 'suspended_state', 'hold', 'epoch'))
-- guard: a run that goes on is not released again
if state ~= 'suspended'
    -- guard: a breaker does not release a run that waits for a person
    or hold ~= ARGV[1]
    -- guard: a run is released only in the epoch that was seen
    or (epoch or '0') ~= ARGV[2]
    -- guard: a command releases a run once
    or (ARGV[5] ~= '' and handled(ARGV[5])) then
  return 0
end
local p, due = ARGV[3], now + tonumber(ARGV[4])
for n = 8, #ARGV do
  local i = ARGV[n]
  local status = redis.call('HGET', steps, p .. 'status:' .. i)
  -- guard: a release leaves a running step alone; without it: true
  if status == 'ready' or status == 'retrying' then
    redis.call('HSET', steps, p .. 'sent:' .. i, due, p .. 'sent_until:' .. i, due, p .. 'not_before:' .. i, due,
               p .. 'delay:' .. i, ARGV[4])
  end
end
redis.call('HSET', run, 'state', was)
lift()
if ARGV[5] ~= '' then
  -- With it, or whoever looks in between would refuse the command: the run goes on already.
  emit('command', 'kind', 'resumed', 'actor', ARGV[6], 'reason', ARGV[7])
  answer(ARGV[5], 'done')
end
emit('run_resumed', 'for', hold)
return 1
