-- Go down to a level of the undo: its steps become ready to be taken back, or are named as not undoable.
--
-- FROM     aborting with nothing running, or undoing with nothing of the former level left
-- ARGV[1]  state it comes from      ARGV[2]  undo level it comes from
-- ARGV[3]  undo level it goes to    ARGV[4]  grace ms      ARGV[5]  ms that the whole undo may take
-- ARGV[6]  number of steps to take back, then their ids, then id, reason for each that cannot be,
--          then the run's epoch
-- RETURNS  1 done, 0 somebody else was first
-- EVENTS   run_undoing (from aborting), undo_level_started, undo_impossible for each
local state, level, epoch = unpack(redis.call('HMGET', run, 'state', 'undo_level', 'epoch'))
if state ~= ARGV[1]
    -- guard: a level of the compensation opens once
    or (level or '') ~= ARGV[2]
    -- guard: a reopened run is not compensated by an older decision
    or (epoch or '0') ~= ARGV[#ARGV] then
  return 0
end
if state == 'aborting' then
  -- guard: the compensation waits for running attempts
  if redis.call('ZCARD', leases) > 0 then
    return 0
  end
  emit('run_undoing')
-- guard: a level of the compensation waits for the one above
elseif tonumber(redis.call('HGET', run, 'left')) > 0 then
  return 0
end
local ready = tonumber(ARGV[6])
-- From its first level on; an undo that an operator asked for begins here with `undoing`.
redis.call('HSETNX', run, 'undo_deadline', now + tonumber(ARGV[5]))
redis.call('HSET', run, 'state', 'undoing', 'undo_level', ARGV[3], 'left', ready)
emit('undo_level_started', 'level', ARGV[3], 'steps', table.concat(ARGV, ' ', 7, 6 + ready))
for n = 7, 6 + ready do
  dispatched('u', ARGV[n], tonumber(ARGV[4]))
end
for n = 7 + ready, #ARGV - 1, 2 do
  redis.call('HSET', steps, 'ustatus:' .. ARGV[n], 'not_undoable', 'ureason:' .. ARGV[n], ARGV[n + 1])
  emit('undo_impossible', 'step', ARGV[n], 'reason', ARGV[n + 1])
end
return 1
