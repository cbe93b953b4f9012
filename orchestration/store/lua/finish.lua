-- End a run in a terminal state.
--
-- FROM     the state that the caller decided from, with no step of its batch left and no attempt running
-- KEYS 6…  none, or those that release the run: ended, live, queue, admission requests, admitted, then the sets of the
--          plan, the key and the locks
-- ARGV[1]  former state  ARGV[2]  terminal state  ARGV[3]  epoch  ARGV[4]  run
-- ARGV[5]  '1' if the run leaves the live runs, because nothing else follows its end
--          then the indices of the steps that were not run
-- RETURNS  0 a concurrent transition was first; 1 ended; 2 ended and released, and other runs wait; 3 ended and
--          released, and the run has left the live runs
-- EVENTS   run_ended
local state, epoch, left, cause, version = unpack(redis.call('HMGET', run, 'state', 'epoch', 'left', 'cause', 'version'))
-- guard: a run ends only from the state that the worker has read
if state ~= ARGV[1]
    -- guard: a run does not end while an attempt runs
    or redis.call('ZCARD', leases) > 0 then
  return 0
end
-- A run that was reopened may have returned to the same state, in another epoch.
-- guard: an older decision does not end a reopened run
if (epoch or '0') ~= ARGV[3] then
  return 0
end
-- guard: a run does not end while a step of its level has not ended
if ARGV[1] ~= 'aborting' and tonumber(left) > 0 then
  return 0
end
for n = 6, #ARGV do
  redis.call('HSET', steps, 'status:' .. ARGV[n], 'not_run')
end
redis.call('HSET', run, 'state', ARGV[2], 'left', 0, 'ended', now, 'version', version + 1)
emit_as(version + 1, 'run_ended', 'state', ARGV[2], 'cause', cause or '')
if #apart == 0 then
  return 1
end
local index, live, queue, requests, admitted = unpack(apart)
redis.call('ZADD', index, 'NX', now, ARGV[4])
redis.call('ZREM', queue, ARGV[4])
redis.call('HDEL', requests, ARGV[4])
redis.call('ZREM', admitted, ARGV[4])
for k = 6, #apart do
  redis.call('SREM', apart[k], ARGV[4])
end
-- guard: an ended run is swept until the runs that wait for its place are admitted; without it: false
if redis.call('ZCARD', queue) > 0
    -- guard: an ended run is swept until its parent run and its hooks know the end; without it: false
    or ARGV[5] ~= '1' then
  return 2
end
redis.call('ZREM', live, ARGV[4])
return 3
