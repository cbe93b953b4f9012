-- Go on to a level: its steps become ready or are skipped.
--
-- FROM     the state and level that the caller decided from, with nothing of that batch left
-- ARGV[1]  state it comes from      ARGV[2]  level it comes from
-- ARGV[3]  state it goes to         ARGV[4]  level it goes to
-- ARGV[5]  grace ms                 ARGV[6]  number of ready steps, then their indices,
--          then index, reason for each skipped step, then the run's epoch
-- RETURNS  1 done, 0 somebody else was first
-- EVENTS   run_started (from pending), level_started, step_skipped for each
local state, level, epoch = unpack(redis.call('HMGET', run, 'state', 'level', 'epoch'))
if state ~= ARGV[1] or level ~= ARGV[2] or (epoch or '0') ~= ARGV[#ARGV] then
  return 0
end
if state ~= 'aborting' and tonumber(redis.call('HGET', run, 'left')) > 0 then
  return 0
end
if state == 'aborting' and redis.call('ZCARD', leases) > 0 then
  return 0
end
local ready = tonumber(ARGV[6])
redis.call('HSET', run, 'state', ARGV[3], 'level', ARGV[4], 'left', ready)
if state == 'pending' then
  redis.call('HSET', run, 'started', now)
  emit('run_started')
elseif state ~= ARGV[3] then
  emit('run_' .. ARGV[3])
end
emit('level_started', 'level', ARGV[4], 'steps', table.concat(ARGV, ' ', 7, 6 + ready))
for n = 7, 6 + ready do
  dispatched('', ARGV[n], tonumber(ARGV[5]))
end
for n = 7 + ready, #ARGV - 1, 2 do
  redis.call('HSET', steps, 's:' .. ARGV[n], 'skipped', 'y:' .. ARGV[n], ARGV[n + 1])
  emit('step_skipped', 'step', ARGV[n], 'reason', ARGV[n + 1])
end
return 1
