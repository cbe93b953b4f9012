-- Admit a run, unless a limit is reached; a refused run waits in the queue of the limit that refused it.
--
-- KEYS     queue, admission requests, admitted runs, those of its plan, those with its key, live runs, new runs, the
--          queues in use, the queues of all runs, of its plan and of its key, then for each of its locks its holders and
--          its queue
-- ARGV[1]  run  ARGV[2]  limit of admitted runs, '' for none  ARGV[3]  limit for the plan  ARGV[4]  limit for the key
-- ARGV[5]  '1' to ignore the limits, then the parent runs
-- RETURNS  'ok', 'gone' the run was released, or the limit that is reached: 'all', 'plan', 'key', 'lock'
local run = ARGV[1]
-- guard: a run that has ended is not admitted
if redis.call('HEXISTS', KEYS[2], run) == 0 then
  return 'gone'
end
local part = #ARGV > 5
local order = redis.call('ZSCORE', KEYS[1], run)
-- guard: a run is admitted once
if redis.call('ZSCORE', KEYS[3], run)
    or (part and not order) then
  redis.call('ZREM', KEYS[1], run)
  return 'ok'
end
redis.call('ZREM', KEYS[7], run)
local limited = ARGV[2] ~= '' or ARGV[3] ~= '' or ARGV[4] ~= '' or #KEYS > 11

-- Reports whether an earlier run waits for the same limit.
local function behind(waiting)
  local head = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  return head[1] ~= nil and head[1] ~= run and tonumber(head[2]) < tonumber(order or 0)
end

-- Takes the run out of the queues of its limits, except the one given.
local function leave_queues(stays_in)
  for k = 9, #KEYS do
    if (k <= 11 or k % 2 == 1) and KEYS[k] ~= stays_in and redis.call('ZREM', KEYS[k], run) == 1
        and redis.call('EXISTS', KEYS[k]) == 0 then
      redis.call('SREM', KEYS[8], KEYS[k])
    end
  end
end

-- Puts the run into the queue of a limit, in the order of the requests.
local function refuse(limit, waiting)
  leave_queues(waiting)
  redis.call('ZADD', waiting, order or 0, run)
  redis.call('SADD', KEYS[8], waiting)
  return limit
end

local holds = false
for n = 6, #ARGV do
  holds = holds or redis.call('SISMEMBER', KEYS[5], ARGV[n]) == 1
end
-- A run that resumes is admitted beyond the limits.
if ARGV[5] ~= '1' then
  if ARGV[2] ~= '' then
    -- guard: no more runs are admitted than the limit allows; without it: false
    local full = redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[2])
    -- guard: runs are admitted in the order of their requests; without it: full
    full = full or behind(KEYS[9])
    if full
        -- guard: a child run does not count for the limit
        and not part then
      return refuse('all', KEYS[9])
    end
  end
  if ARGV[3] ~= '' then
    -- guard: no more runs of a plan are admitted than its limit allows; without it: false
    local full = redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[3])
    -- guard: runs of a plan are admitted in the order of their requests; without it: full
    full = full or behind(KEYS[10])
    if full
        -- guard: a child run does not count for the limit of its plan
        and not part then
      return refuse('plan', KEYS[10])
    end
  end
  if ARGV[4] ~= '' then
    -- guard: no more runs get a concurrency key than its limit allows; without it: false
    local full = redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[4])
    -- guard: runs get a concurrency key in the order of their requests; without it: full
    full = full or behind(KEYS[11])
    if full
        -- guard: a child run does not wait for the key of its parents
        and not holds then
      return refuse('key', KEYS[11])
    end
  end
  -- All locks are acquired or none, so that two runs that need several never wait for each other.
  for k = 12, #KEYS, 2 do
    local others = redis.call('SCARD', KEYS[k])
    for n = 6, #ARGV do
      -- guard: a child run shares the locks of its parents
      others = others - redis.call('SISMEMBER', KEYS[k], ARGV[n])
    end
    -- guard: a lock belongs to one run; without it: false
    if others > 0 then
      return refuse('lock', KEYS[k + 1])
    end
  end
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- guard: a child run does not count for the limit; without it: true
if not part then
  redis.call('ZADD', KEYS[3], now, run)
  redis.call('SADD', KEYS[4], run)
end
if ARGV[4] ~= '' and not holds then
  redis.call('SADD', KEYS[5], run)
end
for k = 12, #KEYS, 2 do
  -- guard: a lock belongs to one run
  redis.call('SADD', KEYS[k], run)
end
redis.call('ZREM', KEYS[1], run)
if limited then
  -- guard: an admitted run waits in no queue
  leave_queues('')
end
-- A queued run is swept rarely, so the next sweep is due now.
-- guard: the next sweep starts an admitted run
redis.call('ZADD', KEYS[6], 'XX', 'LT', now, run)
return 'ok'
