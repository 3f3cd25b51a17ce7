/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The arming protocol: who may run an alarm's first action, whatever the interleaving. docs/model.md says what
 * is left out. One scenario per run, chosen by -D:
 *
 *   FIRE     thread 1 arms; FIN and RST are reported at any time (in the others one of them, REUSE both)
 *   CANCEL   ... and cancels, waiting or not, and arms again
 *   REARM    ... and arms again after the alarm has fired
 *   OTHER    ... while thread 2 cancels, waits and arms for itself
 *   BUSY     ... the same, from where FIN has been reported and thread 1 is about to run its task work
 *   RELEASE  ... while the kernel forgets the socket
 *   REUSE    ... cancels, and gives the slot to another socket
 *
 * Promela is sequentially consistent. Where an order is a duty of the code, a mutation (another -D) lets the
 * store wait in a buffer, or does the two steps the other way round, and must fail.
 */

#ifdef BUSY
#define OTHER
#endif
#ifdef OTHER
#define THREADS 2
#else
#define THREADS 1
#endif

#define FIN 1
#define RST 2
#define BOTH 3

#define IDLE 0
#define ARMED 1
#define FIRED 2
#define DELIVERING 3
#define DELIVERED 4

/* The watch state. A word is changed in one step; its parts have names of their own. */
byte seen_generation = 1, seen_events;
byte control_generation, control_interest, control_state;
byte tid;
byte state_cookie = 1;

/* The registry: which sockets are in it, and what stands in the element. There is one element, since memory of
 * a deleted one may be given to the next at once, under the eyes of a program that still holds a pointer to it. */
bit registered[3];
byte element_generation = 1;

/* The ring: records are cookies; 0: of a socket that is none of ours. */
chan ring = [1] of { byte };
bit lost; /* the count has moved since the reader looked */

/* Task work: one item per registry element. Only the first socket has one; the slot's next socket has records. */
#define STANDBY 0
#define PENDING 1
#define RUNNING_NOW 2
byte work, work_thread;
bit in_callback[3]; /* the thread's own code stands still meanwhile */

/* The alarm's chain, under its mutex: each access is one step. */
#define WAITING 0
#define QUEUED 1
#define RUNNING 2
#define ENDED 3
byte phase, run_generation;
bit cancel_requested;
byte arming_thread;
byte job[3]; /* per generation, for the dispatcher: 1: from the first action, 2: what follows it */
bit core_mutex;
byte known_cookie = 1; /* the socket that the library knows, 0: none */

/* What is asked of the protocol, per alarm generation and per socket. */
byte owner[3], wanted[3], socket_of[3];
bit won[3];   /* a cancel won */
bit cut[3];   /* a cancel said that it had fired */
bit quiet[3]; /* nothing of it may run any more: a cancel has returned, and said so or waited */
byte sent[3], rest[3];
byte happened[3], reported[3];
byte busy_threads = THREADS;

/* Always 0; they give an assertion its name, which tests/model/check looks for. */
hidden byte LOST_FIRE, SENT_TWICE, AFTER_CANCEL, WRONG_THREAD, NOT_HAPPENED, REST_BEFORE_FIRST, REST_TWICE, REST_LOST, HANGS,
    CLOBBERED;
#define must(condition, property) assert((condition) || property)

/* Worth reaching; the verifier lists what it did not reach. */
#define outcome(text) printf(text)

/* A step of a thread's own code; the dispatcher is thread 0. */
#define user(step) atomic { !in_callback[me] -> step }
#define user_waits(condition, step) atomic { !in_callback[me] && (condition) -> step }

inline send_signal(target, g) {
  must(sent[g] == 0, SENT_TWICE);
  must(!won[g] && !quiet[g], AFTER_CANCEL);
  must(target == owner[g], WRONG_THREAD);
  must(happened[socket_of[g]] & wanted[g], NOT_HAPPENED);
  sent[g]++;
}

inline run_rest(g) {
  must(sent[g] == 1, REST_BEFORE_FIRST);
  must(!won[g] && !quiet[g], AFTER_CANCEL);
  must(rest[g] == 0, REST_TWICE);
  rest[g]++;
}

/* ---- kernel ---- */

#ifdef LOST_WITHOUT_FENCE
bit lost_buffered;
proctype LostBuffer() {
end:
  do
  :: atomic { lost_buffered -> lost_buffered = 0; lost = 1 }
  od
}
#endif

/* Where the ring is full: announce the loss, then try again. */
#ifdef LOST_WITHOUT_FENCE
#define COUNT_LOST lost_buffered = 1
#else
#define COUNT_LOST lost = 1
#endif
inline push(cookie) {
  if
  :: atomic { nfull(ring) -> ring!cookie }
  :: full(ring) ->
    COUNT_LOST;
#ifndef NO_SECOND_TRY
    if
    :: atomic { nfull(ring) -> ring!cookie; outcome("second try found room") }
    :: full(ring) -> outcome("record lost")
    fi
#endif
  fi
}

#ifdef REPORT_WITHOUT_FENCE
byte or_buffered[4];
proctype OrBuffer() {
end:
  do
  :: atomic { or_buffered[FIN] -> or_buffered[FIN] = 0; seen_events = seen_events | FIN }
  :: atomic { or_buffered[RST] -> or_buffered[RST] = 0; seen_events = seen_events | RST }
  od
}
#endif

#define DIRECT(cookie) (cookie == 1)

/* A program on a tracepoint, on any CPU. */
proctype Reporter(byte cookie; byte event) {
  byte generation, thread;
  bit fresh, scheduled;
#ifdef REUSE
  happened[cookie] = happened[cookie] | event; /* the socket itself shows it from here on */
#endif
  atomic {
    if
    :: !registered[cookie] -> goto done
    :: registered[cookie] -> happened[cookie] = happened[cookie] | event; reported[cookie] = reported[cookie] | event
    fi
  }
#ifdef REUSE
  generation = element_generation; /* perhaps another socket's by now */
#ifndef NO_COOKIE_CHECK
  if
  :: state_cookie == cookie
  :: atomic { state_cookie != cookie -> outcome("element of another socket"); goto done }
  fi;
#endif
#else
  generation = 1;
#endif
  /* Nothing orders the loads of control and tid, so an old tid may be found beside a new control. */
#ifdef OTHER
  if
  :: thread = tid
  :: skip
  fi;
#endif
  atomic {
    if
#ifndef NO_SLOT_GENERATION
    :: seen_generation != generation -> outcome("slot of another socket")
    :: seen_generation == generation && !(seen_events & event) ->
#else
    :: !(seen_events & event) ->
#endif
      fresh = 1;
#ifdef REPORT_WITHOUT_FENCE
      or_buffered[event] = 1
#else
      seen_events = seen_events | event
#endif
    :: else
    fi;
    generation = 0;
    if
    :: !fresh -> goto done
    :: fresh -> fresh = 0
    fi
  }
  atomic {
    if
    :: control_state != ARMED || !(control_interest & event) -> goto done
    :: else
    fi
  }
  if
  :: thread == 0 -> thread = tid
  :: thread != 0
  fi;
  if
  :: true -> skip /* no direct delivery, or scheduling failed */
  :: atomic {
      DIRECT(cookie) && registered[cookie] && work == STANDBY -> work = PENDING; work_thread = thread;
      scheduled = 1
    }
  :: atomic { registered[cookie] && work != STANDBY -> outcome("task work busy");
#ifdef BUSY_IS_SCHEDULED
      scheduled = 1
#endif
    }
  /* The element is gone, and perhaps another socket's: then the work may run, or be dropped with that one. */
  :: atomic { !registered[cookie] && work == STANDBY -> work = PENDING; work_thread = thread;
      scheduled = 1; outcome("scheduled on a deleted element") }
  :: atomic { DIRECT(cookie) && !registered[cookie] -> scheduled = 1 }
  fi;
  if
#ifdef NO_SECOND_LOOKUP
  :: scheduled -> goto done
#else
  :: atomic { scheduled && registered[cookie] -> goto done }
#endif
  :: true /* also if scheduled: what follows the first action may call for a record as well */
  fi;
  push(cookie);
done:
  atomic { thread = 0; generation = 0; scheduled = 0 }
}

/* The callback, in the thread that it was scheduled for. The sigio handler takes the same steps. */
proctype Callback(byte item) {
  byte me, generation, interest, state, thread, now;
end:
  do
  :: atomic {
      work == PENDING && !in_callback[work_thread] ->
      work = RUNNING_NOW; me = work_thread; in_callback[me] = 1
    }
#ifdef CALLBACK_READS_THREAD_FIRST
    thread = tid;
#endif
    atomic { generation = control_generation; interest = control_interest; state = control_state }
#ifndef CALLBACK_READS_THREAD_FIRST
    thread = tid;
#endif
    atomic {
#ifdef CALLBACK_IGNORES_SEEN
      now = interest;
#else
      now = seen_events;
#endif
#ifndef CALLBACK_IGNORES_SLOT
      if
      :: seen_generation != item -> now = 0; outcome("callback of a former socket")
      :: else
      fi
#endif
    }
#ifdef CALLBACK_IGNORES_THREAD
    thread = me;
#endif
    if
    :: state != ARMED || !(now & interest)
    :: state == ARMED && (now & interest) && thread != me ->
      outcome("callback in another thread");
#ifndef NO_RECORD_FOR_ANOTHER_THREAD
      push(item)
#endif
    :: state == ARMED && (now & interest) && thread == me ->
      atomic {
        if
#ifdef CALLBACK_TESTS_THEN_SETS
        :: true ->
#elif defined(CALLBACK_IGNORES_GENERATION)
        :: control_state == ARMED ->
#else
        :: control_generation == generation && control_state == ARMED ->
#endif
#ifdef NO_DELIVERING
          control_state = DELIVERED
#else
          control_state = DELIVERING
#endif
        :: else -> outcome("callback came too late"); state = IDLE
        fi
      }
      if
      :: state == IDLE
      :: state == ARMED ->
        atomic { send_signal(me, generation); outcome("sent by callback") }
#ifndef NO_DELIVERING
        atomic {
          must(control_generation == generation && control_state == DELIVERING, CLOBBERED);
          control_state = DELIVERED
        }
#endif
#ifndef NO_DELIVERED_RECORD
        push(item)
#endif
      fi
    fi;
    atomic {
      in_callback[me] = 0; work = STANDBY; work_thread = 0;
      me = 0; generation = 0; interest = 0; state = 0; thread = 0; now = 0
    }
  od
}

/* Removes the registry element, and with it what was scheduled and has not begun. */
inline delete_element(cookie) {
  registered[cookie] = 0;
  if
  :: work == PENDING -> work = STANDBY; work_thread = 0; outcome("task work cancelled")
  :: else
  fi
}

#ifdef RELEASE
/* The hook in the thread that closes the last descriptor. */
proctype Release() {
  byte state, interest;
  atomic { delete_element(1) }
  atomic { state = control_state; interest = control_interest }
  if
#ifndef NO_FINAL_RECORD
  :: state == ARMED && (seen_events & interest) -> push(1)
#endif
  :: else
  fi
}
#endif

/* ---- library ---- */

#ifdef ARM_WITHOUT_FENCE
bit control_buffered;
byte buffered_interest;
proctype ControlBuffer() {
end:
  do
  :: atomic {
      control_buffered -> control_buffered = 0; control_generation++; control_interest = buffered_interest;
      control_state = ARMED
    }
  od
}
#endif

#ifdef DISPATCHER_TESTS_THEN_SETS
#define FIRE_MATCHES true
#elif defined(DISPATCHER_IGNORES_GENERATION)
#define FIRE_MATCHES control_state == ARMED
#else
#define FIRE_MATCHES control_generation == g && control_state == ARMED
#endif

/* Armed -> fired of whatever generation is armed now, if it wants one of `now`. Gives it in `fired`, 0: none. */
inline try_fire(now) {
  do
  :: user(
      g = control_generation; state = control_state;
      if
      :: control_state != ARMED || !(control_interest & now) -> fired = 0; break
      :: else
      fi);
    user(
      if
      :: FIRE_MATCHES -> control_state = FIRED; fired = g; break
      :: else
      fi)
  od
}

/* The winner's duty: the chain to the dispatcher, unless a cancel has ended it meanwhile. */
inline queue(fired) {
  if
  :: control_generation == fired && control_state == FIRED && phase != ENDED -> phase = QUEUED; run_generation = fired
  :: else -> outcome("ended before it was queued")
  fi
}

#ifdef ARM_WITHOUT_FENCE
#define ARM(events) control_buffered = 1; buffered_interest = events
#define FENCE !control_buffered /* a compare-and-swap waits for the store before it */
#else
#define ARM(events) control_generation++; control_interest = events; control_state = ARMED
#define FENCE skip
#endif

inline arm(events) {
  user(tid = me; arming_thread = me);
  user(
    must(control_state == IDLE, CLOBBERED);
    g = control_generation + 1; owner[g] = me; wanted[g] = events; socket_of[g] = known_cookie;
    ARM(events));
#ifdef NO_LOOK_WHEN_ARMED
  user(now = 0);
#else
  user(now = seen_events & events);
#endif
  if
  :: now ->
    FENCE;
    try_fire(now);
    if
    :: fired -> user(queue(fired)); user(job[fired] = 1; outcome("fired by the arming thread"))
    :: !fired
    fi
  :: !now
  fi;
  atomic { g = 0; state = 0; fired = 0; now = 0 }
}

#ifdef CANCEL_TESTS_THEN_SETS
#define CANCEL_MATCHES true
#else
#define CANCEL_MATCHES control_generation == g && control_state == ARMED
#endif
#ifdef CANCEL_ENDS_DELIVERING
#define MUST_NOT_END_YET false
#else
#define MUST_NOT_END_YET state == DELIVERING
#endif

inline cancel(wait) {
  fired = 0;
  do
  :: user(g = control_generation; state = control_state);
    if
    :: state == IDLE -> break
    :: state == ARMED ->
      user(
        if
        :: CANCEL_MATCHES ->
          control_state = IDLE; won[g] = 1; state = IDLE; must(sent[g] == 0, AFTER_CANCEL); outcome("cancel won")
        :: else
        fi);
      if
      :: state == IDLE -> break
      :: else
      fi
    :: else ->
      user(
        if
        :: control_generation != g || control_state != state -> fired = 0
        :: else ->
          fired = g;
          if
          :: phase == ENDED -> quiet[g] = 1
          :: phase != ENDED && (phase == RUNNING || MUST_NOT_END_YET) ->
            cut[g] = 1; cancel_requested = 1; outcome("cancel lost and the chain goes on to its next step")
          :: else -> cut[g] = 1; quiet[g] = 1; phase = ENDED; outcome("cancel lost and ended the chain")
          fi
        fi);
      if
      :: fired && wait -> user_waits(phase == ENDED, quiet[g] = 1); break
      :: fired && !wait -> break
      :: !fired
      fi
    fi
  od;
  g = 0; state = 0; fired = 0
}

/* From fired, with the chain at its end, back to idle. */
inline make_idle() {
  user_waits(phase == ENDED || control_state == IDLE,
    if
    :: control_state != IDLE -> control_state = IDLE; phase = WAITING; cancel_requested = 0
    :: else
    fi)
}

proctype Thread1() {
  byte me = 1, g, state, fired, now;
  bit wait;
  arm(BOTH);
#ifdef CANCEL
  if
  :: wait = 1
  :: wait = 0
  fi;
  cancel(wait);
  make_idle();
  if
  :: arm(BOTH)
  :: arm(FIN) /* does not want what is reported */
  fi;
#endif
#ifdef REARM
  user_waits(phase == ENDED, skip);
  make_idle();
  arm(BOTH);
  user_waits(phase == ENDED, skip);
#endif
#ifdef REUSE
  cancel(1);
  user_waits(!core_mutex, core_mutex = 1; known_cookie = 0);
  user(delete_element(1));
#ifdef LOOK_BEFORE_REGISTERING
  user(now = happened[2]);
#endif
  user(state_cookie = 2; control_state = IDLE; phase = WAITING; cancel_requested = 0);
  user(seen_generation = 2; seen_events = 0);
  user(element_generation = 2; registered[2] = 1; known_cookie = 2);
#ifndef LOOK_BEFORE_REGISTERING
  user(now = happened[2]);
#endif
  user(seen_events = seen_events | now; reported[2] = reported[2] | happened[2]; core_mutex = 0);
  arm(BOTH);
#endif
  busy_threads--
}

#ifdef OTHER
proctype Thread2() {
  byte me = 2, g, state, fired, now;
  control_generation == 1;
  cancel(1);
  make_idle();
#ifdef BUSY
  arm(RST);
#else
  arm(BOTH);
#endif
  busy_threads--
}
#endif

/* May the next action begin? */
inline begin_action() {
  if
  :: run_generation != g || phase == ENDED || phase == WAITING -> index = 0; outcome("over before its action")
  :: else ->
    if
    :: cancel_requested -> phase = ENDED; index = 0; outcome("ended at its next step")
    :: else -> phase = RUNNING
    fi
  fi
}

inline run_chain() {
  atomic { begin_action() }
  if
  :: atomic { index == 1 -> send_signal(arming_thread, g); outcome("sent by the dispatcher"); index = 2; begin_action() }
  :: index != 1
  fi;
  atomic {
    if
    :: index == 2 -> run_rest(g); phase = ENDED
    :: else
    fi;
    g = 0; index = 0
  }
}

proctype Dispatcher() {
  byte me = 0, g, state, fired, now, cookie, index;
  bit sweep;
end:
  do
#ifdef LOST_LOOKED_AT_FIRST
  :: atomic { nempty(ring) || job[1] || job[2] -> sweep = lost; lost = 0 }
    atomic {
#else
  :: atomic {
      nempty(ring) || job[1] || job[2] ->
#endif
      if
      :: nempty(ring) -> ring?cookie /* its room is free */
      :: empty(ring)
      fi
    }
#ifndef LOST_LOOKED_AT_FIRST
    atomic { sweep = lost; lost = 0 }
#endif
#ifdef NO_SWEEP
    sweep = 0;
#endif
    if
    :: cookie || sweep ->
#ifdef REUSE
      atomic { !core_mutex -> core_mutex = 1 }
#endif
      atomic {
        if
        :: known_cookie && cookie == known_cookie -> now = seen_events
        :: known_cookie && sweep && cookie != known_cookie -> now = seen_events; outcome("swept")
        :: else -> outcome("record of a former socket")
        fi;
        cookie = 0; sweep = 0
      }
      try_fire(now);
      if
      :: fired ->
        outcome("fired by the dispatcher");
        atomic { queue(fired) }
        job[fired] = 1
      :: !fired && now && state == DELIVERED ->
        atomic {
          if
#ifdef TAKEOVER_UNCHECKED
          :: phase == WAITING ->
#else
          :: control_generation == g && control_state == DELIVERED && phase == WAITING ->
#endif
            phase = QUEUED; run_generation = g; job[g] = 2; outcome("taken over from the callback")
          :: else
          fi
        }
      :: !fired && now && state == DELIVERING -> outcome("callback still sending")
      :: else
      fi;
      atomic { core_mutex = 0; fired = 0; g = 0; state = 0; now = 0 }
    :: else
    fi;
    do
    :: atomic { job[1] -> g = 1; index = job[1]; job[1] = 0 }
      run_chain()
    :: atomic { !job[1] && job[2] -> g = 2; index = job[2]; job[2] = 0 }
      run_chain()
    :: !job[1] && !job[2] -> break
    od
  od
}

/* Nothing can move any more. */
proctype Check() {
  byte g;
  timeout;
  must(busy_threads == 0, HANGS);
  atomic {
    for (g : 1 .. 2) {
      if
      :: owner[g] && !won[g] && !cut[g] && (reported[socket_of[g]] & wanted[g]) ->
        must(sent[g] == 1, LOST_FIRE);
        must(rest[g] == 1, REST_LOST)
      :: else
      fi
    }
    /* What a chain that is over left behind must not keep anybody from arming again. */
    must(control_state == IDLE || control_state == ARMED || phase == ENDED, REST_LOST)
  }
}

init {
  atomic {
    registered[1] = 1;
#if defined(FIRE) || defined(RELEASE)
    ring!0; /* full; the dispatcher may empty it at once */
#endif
#ifdef BUSY
    busy_threads = 1; owner[1] = 1; wanted[1] = BOTH; socket_of[1] = 1; happened[1] = FIN; reported[1] = FIN;
    control_generation = 1; control_interest = BOTH; control_state = ARMED; tid = 1; arming_thread = 1;
    seen_events = FIN; work = PENDING; work_thread = 1;
#else
    run Thread1();
#endif
#ifdef OTHER
    run Thread2();
#endif
#if defined(FIRE) || defined(REUSE)
    run Reporter(1, FIN);
#endif
#ifdef REUSE
    run Reporter(2, RST);
#else
    run Reporter(1, RST);
#endif
#ifdef RELEASE
    run Release();
#endif
    run Callback(1);
    run Dispatcher();
    run Check();
#ifdef ARM_WITHOUT_FENCE
    run ControlBuffer();
#endif
#ifdef REPORT_WITHOUT_FENCE
    run OrBuffer();
#endif
#ifdef LOST_WITHOUT_FENCE
    run LostBuffer();
#endif
  }
}
