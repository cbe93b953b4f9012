-- Open a level of the compensation: undos become ready, or are recorded as not_undoable or held_back.
--
-- FROM     aborting with no attempt running, or undoing with no undo of the former level left
-- ARGV[1]  former state       ARGV[2]  former undo level
-- ARGV[3]  new undo level     ARGV[4]  grace ms      ARGV[5]  timeout of the whole compensation, ms
-- ARGV[6]  number of steps to undo, then their ids, then id, undo state and reason for each that is not undone,
--          then the epoch
-- RETURNS  1 opened, 0 a concurrent transition was first
-- EVENTS   run_undoing (from aborting), undo_level_started, undo_impossible or undo_held_back for each
local state, level, epoch = unpack(redis.call('HMGET', run, 'state', 'undo_level', 'epoch'))
if state ~= ARGV[1]
    -- guard: a level of the compensation opens once
    or (level or '') ~= ARGV[2]
    -- guard: an older decision does not compensate a reopened run
    or (epoch or '0') ~= ARGV[#ARGV] then
  return 0
end
if state == 'aborting' then
  -- guard: the compensation waits for running attempts
  if redis.call('ZCARD', leases) > 0 then
    return 0
  end
  emit('run_undoing')
-- guard: a level of the compensation waits for the previous level
elseif tonumber(redis.call('HGET', run, 'left')) > 0 then
  return 0
end
local ready = tonumber(ARGV[6])
-- The deadline counts from the first level on; an undo by an operator begins here, in state `undoing`.
redis.call('HSETNX', run, 'undo_deadline', now + tonumber(ARGV[5]))
redis.call('HSET', run, 'state', 'undoing', 'undo_level', ARGV[3], 'left', ready)
emit('undo_level_started', 'level', ARGV[3], 'steps', table.concat(ARGV, ' ', 7, 6 + ready))
for n = 7, 6 + ready do
  dispatched('u', ARGV[n], tonumber(ARGV[4]))
end
for n = 7 + ready, #ARGV - 1, 3 do
  local undo, reason = ARGV[n + 1], ARGV[n + 2]
  redis.call('HSET', steps, 'ustatus:' .. ARGV[n], undo, 'ureason:' .. ARGV[n], reason)
  emit(undo == 'held_back' and 'undo_held_back' or 'undo_impossible', 'step', ARGV[n], 'reason', reason)
end
return 1
