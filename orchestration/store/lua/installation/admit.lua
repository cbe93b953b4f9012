-- Admit a run, unless a limit is reached.
--
-- KEYS     queue, admission requests, admitted runs, those of its plan, those with its key, live runs, then the holders
--          of each of its locks
-- ARGV[1]  run  ARGV[2]  limit of admitted runs, '' for none  ARGV[3]  limit for the plan  ARGV[4]  limit for the key
-- ARGV[5]  '1' to ignore the limits  ARGV[6]  '1' if the caller starts the run, then the parent runs
-- RETURNS  'ok', 'gone' the run was released, or the limit that is reached: 'all', 'plan', 'key', 'lock'
local run = ARGV[1]
-- guard: a released run is not admitted
if redis.call('HEXISTS', KEYS[2], run) == 0 then
  return 'gone'
end
local part = #ARGV > 6
-- guard: a run is admitted once
if redis.call('ZSCORE', KEYS[3], run)
    or (part and not redis.call('ZSCORE', KEYS[1], run)) then
  redis.call('ZREM', KEYS[1], run)
  return 'ok'
end
local holds = false
for n = 7, #ARGV do
  holds = holds or redis.call('SISMEMBER', KEYS[5], ARGV[n]) == 1
end
-- A run that resumes is admitted beyond the limits.
if ARGV[5] ~= '1' then
  if ARGV[2] ~= ''
      -- guard: a child run takes no place
      and not part
      -- guard: no more runs are live than may; without it: false
      and redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[2]) then
    return 'all'
  end
  if ARGV[3] ~= ''
      -- guard: a child run takes no place of its plan
      and not part
      -- guard: no more runs of a plan are live than may; without it: false
      and redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[3]) then
    return 'plan'
  end
  if ARGV[4] ~= ''
      -- guard: a child run does not wait for the key of its parents
      and not holds
      -- guard: no more runs hold a key than may; without it: false
      and redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[4]) then
    return 'key'
  end
  -- All locks are acquired or none, so that two runs that need several never wait for each other.
  for k = 7, #KEYS do
    local others = redis.call('SCARD', KEYS[k])
    for n = 7, #ARGV do
      -- guard: a child run shares the locks of its parents
      others = others - redis.call('SISMEMBER', KEYS[k], ARGV[n])
    end
    -- guard: a lock belongs to one run
    if others > 0 then
      return 'lock'
    end
  end
end
local clock = redis.call('TIME')
-- guard: a child run takes no place; without it: true
if not part then
  redis.call('ZADD', KEYS[3], clock[1] * 1000 + math.floor(clock[2] / 1000), run)
  redis.call('SADD', KEYS[4], run)
end
if ARGV[4] ~= '' and not holds then
  redis.call('SADD', KEYS[5], run)
end
for k = 7, #KEYS do
  -- guard: a lock belongs to one run
  redis.call('SADD', KEYS[k], run)
end
redis.call('ZREM', KEYS[1], run)
-- A queued run is swept rarely, so the next sweep is due now.
-- guard: a sweep starts an admitted run; without it: false
if ARGV[6] ~= '1' then
  redis.call('ZADD', KEYS[6], 'XX', 'LT', clock[1] * 1000 + math.floor(clock[2] / 1000), run)
end
return 'ok'
