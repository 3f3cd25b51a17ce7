/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Who wakes the dispatcher for a record of the ring: sockalarm_table_header (`looking`) and sockalarm_late_wake, in
 * bpf/sockalarm_abi.h. Programs push at once: records that may be read late, and others that may not. The ring
 * buffer does as kernel/bpf/ringbuf.c: unless told otherwise it wakes only a reader that had caught up with the very
 * record that is committed.
 *
 *   SLEEPS   the dispatcher sleeps whenever there is nothing to read; two late records, one other
 *   LOOKS    ... but first looks by itself, as in Waking::adaptive; one late record, two others
 */
#ifdef LOOKS
#define LATE 1
#define PROMPT 2
#else
#define LATE 2
#define PROMPT 1
#endif
#define PLACES 8 /* each pusher's, and one for each time that the timer wakes */

byte reserved, consumed; /* positions in the ring */
bit committed[PLACES], waits[PLACES]; /* whole; pushed by a prompt one, which is through */
bit looking, woken, asleep;
bit used, started, timer_runs, in_timer;
byte under_way; /* pushers that may yet wake it */
byte through;

/* Always 0; see arming.pml. */
hidden byte LEFT_UNREAD, TOLD_LATE;
#define must(condition, property) assert((condition) || property)
#define outcome(text) printf(text)

inline reserve() {
  d_step { place = reserved; reserved++; under_way++ }
}

inline commit(forced, silent) {
  committed[place] = 1;
  if
  :: atomic { forced || (!silent && consumed == place) -> woken = 1; under_way-- }
  :: atomic { else -> under_way-- }
  fi
}

inline start_timer() {
  d_step { was = started; started = 1 }
  if
  :: was -> outcome("left to a timer that runs")
  :: else -> timer_runs = 1
  fi
}

proctype late() {
  byte place;
  bit was;
#ifndef USED_SET_LAST
  used = 1;
#endif
#ifdef STARTED_FIRST
  start_timer();
#endif
  reserve();
  commit(0, 1);
#ifndef STARTED_FIRST
  start_timer();
#endif
#ifdef USED_SET_LAST
  used = 1;
#endif
  through++
}

proctype prompt() {
  byte place;
  bit silent, forced;
#ifdef LOOKED_BEFORE_RESERVING
  silent = looking;
  reserve();
#else
  reserve();
  silent = looking;
#endif
#ifndef USED_IGNORED
  forced = !silent && used;
#endif
  commit(forced, silent);
  atomic { waits[place] = 1; through++ }
}

active proctype timer() {
  byte place;
  do
  :: atomic { timer_runs -> timer_runs = 0; in_timer = 1 };
#ifdef CLEARED_LAST
     reserve();
     commit(1, 0);
     started = 0;
#else
     started = 0;
     reserve();
     commit(1, 0);
#endif
     in_timer = 0;
  :: through == LATE + PROMPT && !timer_runs -> break
  od
}

inline drain() {
  do
  :: d_step { consumed < reserved && committed[consumed] -> consumed++ }
  :: d_step { !(consumed < reserved && committed[consumed]) -> skip } -> break
  od
}

active proctype dispatcher() {
  do
  :: drain();
#ifdef LOOKS
     looking = 1;
     drain();
#ifndef SLEEPS_UNTOLD
     looking = 0;
#endif
#endif
#ifndef NO_LAST_LOOK
     /* What has been reserved, whole or not, is not slept over. */
     if
     :: consumed < reserved -> outcome("something had come"); goto next
     :: else
     fi;
#endif
     asleep = 1;
end_asleep:
     atomic { woken -> woken = 0; asleep = 0 };
     outcome("woken");
next:
     skip
  od
}

#define RESTS (asleep && !woken)
#define NOBODY_COMES (through == LATE + PROMPT && !timer_runs && !in_timer)

active proctype monitor() {
end_all_read:
  if
  :: atomic { RESTS && NOBODY_COMES && consumed < reserved -> must(false, LEFT_UNREAD) }
  :: atomic { RESTS && under_way == 0 && consumed < reserved &&
              ((waits[0] && consumed <= 0) || (waits[1] && consumed <= 1) || (waits[2] && consumed <= 2) ||
               (waits[3] && consumed <= 3) || (waits[4] && consumed <= 4) || (waits[5] && consumed <= 5)) ->
       must(false, TOLD_LATE) }
  fi
}

init {
  byte i;
  atomic {
    for (i : 1 .. LATE) { run late() }
    for (i : 1 .. PROMPT) { run prompt() }
  }
}
