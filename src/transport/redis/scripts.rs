//! Lua scripts, which the server executes in one step.
//!
//! No other client sees a message in two places or in none, and a client that is killed leaves all of a step or
//! nothing. Only an error (a key of another type, a missing permission) ends a script in the middle. So commands that
//! may fail come before those that remove something. The keys are the stream and the set of delayed messages, in this
//! order.

use std::sync::LazyLock;

use redis::Script;

/// A script that is created once. Servers then know it by its hash.
macro_rules! script {
    ($(#[$doc:meta])* $name:ident = $code:expr) => {
        $(#[$doc])*
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new($code));
    };
}

script! {
    /// Receives messages. Arguments: group, consumer, limit, the idle time after which messages of other consumers are
    /// abandoned, where to continue the search for those, now (empty: ignore delayed messages).
    ///
    /// If delayed messages are due, returns them and does nothing else. Otherwise returns where to continue the search,
    /// the entries, and when the next delayed message is due.
    ///
    /// One XAUTOCLAIM examines ten entries for each that it may claim. It is repeated only up to a number of examined
    /// entries that keeps the script short, because the server executes nothing else meanwhile.
    RECEIVE = r"
local stream, queue = KEYS[1], KEYS[2]
local group, consumer, up_to = ARGV[1], ARGV[2], tonumber(ARGV[3])
if ARGV[6] ~= '' then
  local due = redis.call('ZRANGEBYSCORE', queue, '-inf', ARGV[6], 'LIMIT', 0, 100)
  if #due > 0 then return {due} end
end
local entries, cursor, examined = {}, ARGV[5], 0
repeat
  local room = up_to - #entries
  local claimed = redis.call('XAUTOCLAIM', stream, group, consumer, ARGV[4], cursor, 'COUNT', room)
  for _, entry in ipairs(claimed[2]) do
    if entry and entry[2] then entries[#entries + 1] = entry end
  end
  cursor, examined = claimed[1], examined + 10 * room
until cursor == '0-0' or #entries == up_to or examined >= 1000
if #entries < up_to then
  local read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', up_to - #entries, 'STREAMS', stream, '>')
  if read then
    for _, entry in ipairs(read[1][2]) do entries[#entries + 1] = entry end
  end
end
local next_due = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
return {cursor, entries, next_due[2] or ''}"
}

script! {
    /// Makes delayed messages pending. Arguments: the maximum length of the stream (empty: none), now, and for each
    /// message the member of the set and the entry it becomes.
    ///
    /// A message that is no longer in the set was taken by another consumer. So was one that is no longer due: Symfony
    /// 7.4 raises the score of a member before it adds the entry, and removes the member after that.
    BECOME_DUE = r"
local bound, now = {}, tonumber(ARGV[2])
if ARGV[1] ~= '' then bound = {'MAXLEN', '~', ARGV[1]} end
for n = 3, #ARGV, 2 do
  local due = redis.call('ZSCORE', KEYS[2], ARGV[n])
  if due and tonumber(due) <= now then
    local add = {'XADD', KEYS[1]}
    for _, word in ipairs(bound) do add[#add + 1] = word end
    for _, word in ipairs({'*', 'message', ARGV[n + 1]}) do add[#add + 1] = word end
    redis.call(unpack(add))
    redis.call('ZREM', KEYS[2], ARGV[n])
  end
end"
}

script! {
    /// Counts messages. Arguments: group, now, the idle time after which messages are abandoned, cap. Returns whether
    /// the group exists, and how many are pending, delayed and in flight.
    COUNT = r"
local stream, queue = KEYS[1], KEYS[2]
local cap = tonumber(ARGV[4])
local function fields(flat)
  local map = {}
  for n = 1, #flat, 2 do map[flat[n]] = flat[n + 1] end
  return map
end
local due = redis.call('ZCOUNT', queue, '-inf', ARGV[2])
local delayed = redis.call('ZCOUNT', queue, '(' .. ARGV[2], '+inf')
if redis.call('EXISTS', stream) == 0 then return {0, due, delayed, 0} end
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local group = fields(flat)
  if group['name'] == ARGV[1] then
    local new, held = group['lag'], group['pending']
    local last, length = group['last-delivered-id'], redis.call('XLEN', stream)
    -- Redis counts entries that were deleted before they were delivered, and goes on to count them later. Where all
    -- entries are deleted when they are finished, the length tells; otherwise it matters whether any ever was.
    if new and new > 0 then
      if #redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1) == 0 then
        new = 0
      elseif new > length then
        new = nil
      elseif new ~= length - held then
        local deleted = fields(redis.call('XINFO', 'STREAM', stream))['max-deleted-entry-id']
        if deleted ~= '0-0' then new = nil end
      end
    end
    if not new then
      -- A few at a time, as each is read with its body.
      new = 0
      while last and new < cap do
        local entries = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 100)
        new = new + #entries
        last = #entries > 0 and entries[#entries][1]
      end
    end
    local abandoned = 0
    if held > 0 then
      local most = math.min(held, cap)
      if most > 0 then
        abandoned = #redis.call('XPENDING', stream, ARGV[1], 'IDLE', ARGV[3], '-', '+', most)
      end
    end
    return {1, new + abandoned + due, delayed, held - abandoned}
  end
end
return {0, redis.call('XLEN', stream) + due, delayed, 0}"
}

script! {
    /// Makes messages in flight pending. Arguments: group, the consumer that has them, ids. Messages that another
    /// consumer has by now are skipped. The others are made to look abandoned long ago, and keep their place in the
    /// queue. That changes no key, so a key is changed and changed back to wake waiting consumers.
    RELEASE = r"
local released = false
for n = 3, #ARGV do
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[n], ARGV[n], 1)[1]
  if held and held[2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], held[2], 0, ARGV[n], 'TIME', 0, 'JUSTID')
    released = true
  end
end
if released then
  -- A full server refuses this. Consumers then find the messages by polling.
  redis.pcall('ZADD', KEYS[2], 0, '')
  redis.pcall('ZREM', KEYS[2], '')
end"
}

script! {
    /// Makes delayed messages due, up to a thousand at a time. Argument: now. Returns whether there are more. Those that were
    /// taken by their ids (`ids::is_taken`) are in flight.
    RESUME = r#"
local delayed = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'LIMIT', 0, 1000)
local made_due = 0
for _, member in ipairs(delayed) do
  if not member:sub(-60):find('"uniqid":"taken%-%x+"}$') then
    redis.call('ZADD', KEYS[2], 'XX', ARGV[1], member)
    made_due = made_due + 1
  end
end
if #delayed == 1000 and made_due > 0 then return 1 end
return 0"#
}

script! {
    /// Restarts the time in flight. Arguments: group, consumer, ids. Messages that are not (or no longer) this
    /// consumer's are skipped.
    KEEP_ALIVE = r"
for n = 3, #ARGV do
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[n], ARGV[n], 1)[1]
  if held and held[2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[n], 'IDLE', 0, 'JUSTID')
  end
end"
}

script! {
    /// Changes when delayed messages are due. Arguments: the new time, and for each message the member and when it is due. One
    /// that is due at another time by now was taken by another consumer.
    CHANGE_DUE = r"
for n = 2, #ARGV, 2 do
  local due = redis.call('ZSCORE', KEYS[2], ARGV[n])
  if due and (ARGV[n + 1] == '*' or math.floor(math.max(tonumber(due), 0)) == tonumber(ARGV[n + 1])) then
    redis.call('ZADD', KEYS[2], 'XX', ARGV[1], ARGV[n])
  end
end"
}

script! {
    /// Finishes messages. Arguments: group, whether to delete them, ids. (A server whose memory is full would refuse a
    /// transaction, but not this script, and deleting messages is what frees memory.)
    FINISH = r"
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, 3)) end"
}

script! {
    /// Removes delayed messages. Arguments: for each the member and when it is due (`*`: at any time). One that is due
    /// at another time by now was taken by another consumer.
    REMOVE_DELAYED = r"
for n = 1, #ARGV, 2 do
  local due = redis.call('ZSCORE', KEYS[2], ARGV[n])
  if due and (ARGV[n + 1] == '*' or math.floor(math.max(tonumber(due), 0)) == tonumber(ARGV[n + 1])) then
    redis.call('ZREM', KEYS[2], ARGV[n])
  end
end"
}

script! {
    /// Replaces a message. The third key is where the new one goes: a stream or a set. Arguments: group, the entry's id
    /// (or the delayed message's member), when the delayed message is due (`*`: at any time; empty: it is an entry), whether to delete
    /// the entry, the new content, when it is due (empty: now), the maximum length of the stream (empty: none), this
    /// consumer, the idle time after which a message of another consumer is abandoned (empty: it is left to that one).
    ///
    /// Returns the new id; an empty one for a delayed message; nothing if the original is gone, or another consumer's
    /// by now.
    MOVE = r"
local stream, queue, destination = KEYS[1], KEYS[2], KEYS[3]
local group, id, is_delayed = ARGV[1], ARGV[2], ARGV[3] ~= ''
local function parts(text)
  local a, b = text:match('^(%d+)-(%d+)$')
  return tonumber(a), tonumber(b)
end
local function is_ours()
  if is_delayed then
    local due = redis.call('ZSCORE', queue, id)
    return due and (ARGV[3] == '*' or math.floor(math.max(tonumber(due), 0)) == tonumber(ARGV[3]))
  end
  if redis.call('EXISTS', stream) == 0 then return false end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local map = {}
    for n = 1, #flat, 2 do map[flat[n]] = flat[n + 1] end
    if map['name'] == group then
      local held = redis.call('XPENDING', stream, group, id, id, 1)[1]
      if held then return held[2] == ARGV[8] or (ARGV[9] ~= '' and held[3] >= tonumber(ARGV[9])) end
      local a, b = parts(id)
      local c, d = parts(map['last-delivered-id'])
      if a < c or (a == c and b <= d) then return false end
    end
  end
  -- Not received yet.
  return #redis.call('XRANGE', stream, id, id) == 1
end
if not is_ours() then return false end
local new = ''
if ARGV[6] ~= '' then
  redis.call('ZADD', destination, 'NX', ARGV[6], ARGV[5])
elseif ARGV[7] ~= '' then
  new = redis.call('XADD', destination, 'MAXLEN', '~', ARGV[7], '*', 'message', ARGV[5])
else
  new = redis.call('XADD', destination, '*', 'message', ARGV[5])
end
if is_delayed then
  redis.call('ZREM', queue, id)
else
  local was_received = redis.call('XACK', stream, group, id) == 1
  if ARGV[4] == '1' or not was_received then redis.call('XDEL', stream, id) end
end
return new"
}

script! {
    /// Removes consumers that have nothing in flight and have been idle for some time, so that their number does not
    /// grow with every worker that ever ran. Arguments: group, prefix of their names, milliseconds.
    SWEEP = r"
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local map = {}
  for n = 1, #flat, 2 do map[flat[n]] = flat[n + 1] end
  local ours = map['name']:sub(1, #ARGV[2]) == ARGV[2]
  if ours and map['pending'] == 0 and map['idle'] > tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], map['name'])
  end
end"
}
