// SPDX-License-Identifier: Apache-2.0
#include "core/sigio.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <iterator>
#include <new>
#include <optional>
#include <thread>

#include "base/mutex.h"
#include "base/signal_text.h"
#include "core/alarm_record.h"
#include "core/core.h"
#include "core/fork.h"
#include "core/socket.h"
#include "core/socket_identity.h"

namespace sockalarm::detail {

// busy: a lock, but the handler only tries it. missed: the handler came while it was held; set by the
// handler, taken by the holder after it let go of `busy`. Both sequentially consistent: either the handler's
// second try finds the lock free, or the holder finds `missed`.
struct CAPABILITY("lock of a thread's alarms") ThreadAlarms {
  explicit ThreadAlarms(pid_t thread) noexcept : tid(thread) {}

  // In the handler.
  bool try_lock() noexcept TRY_ACQUIRE(true) {
    if (!busy.exchange(true)) return true;
    missed.store(true);
    return !busy.exchange(true);
  }
  void lock() noexcept ACQUIRE() {
    while (busy.exchange(true)) std::this_thread::yield();
  }
  void unlock() noexcept RELEASE() {
    busy.store(false);
    if (missed.exchange(false)) ::syscall(SYS_tgkill, ::getpid(), tid, signal.load());
  }

  const pid_t tid;
  std::atomic<int> signal{0};
  std::atomic<bool> busy{false}, missed{false};
  AlarmRecord* first GUARDED_BY(this) = nullptr;
};

struct SigioSaved {
  int flags = 0;
  int signal = 0;
  f_owner_ex owner{};
};
void SigioSavedDeleter::operator()(SigioSaved* saved) const noexcept { delete saved; }

namespace {

Mutex process_mutex;
Sigio* process_one GUARDED_BY(process_mutex) = nullptr;
int users GUARDED_BY(process_mutex) = 0;
std::atomic<bool> some_not_released{false};  // then the handlers stay
struct sigaction previous_io;                // written before our handler is installed
struct sigaction previous_own;

// For the handler, which must not construct anything.
thread_local ThreadAlarms* my_alarms_now = nullptr;
struct MyAlarms {
  ~MyAlarms() { my_alarms_now = nullptr; }
  std::shared_ptr<ThreadAlarms> list;
};
thread_local MyAlarms my_alarms;

// False: out of memory.
bool make_my_alarms(pid_t tid) noexcept {
  if (my_alarms.list && my_alarms.list->tid == tid) return true;
  try {  // the first time, also in a child that was forked
    my_alarms.list = std::make_shared<ThreadAlarms>(tid);
  } catch (const std::bad_alloc&) {
    return false;
  }
  my_alarms_now = my_alarms.list.get();
  return true;
}

#if defined(__x86_64__) || defined(__aarch64__)
constexpr bool kCanEndCalls = true;
#else
constexpr bool kCanEndCalls = false;
#endif

// Calls that may block for long and may fail with EINTR before they have done anything.
bool may_be_ended(long number) noexcept {
  constexpr long kCalls[] = {SYS_read,     SYS_readv,  SYS_write,   SYS_writev,   SYS_recvfrom, SYS_recvmsg,
                             SYS_recvmmsg, SYS_sendto, SYS_sendmsg, SYS_sendmmsg, SYS_accept,   SYS_accept4,
                             SYS_connect,  SYS_wait4,  SYS_waitid,  SYS_flock,    SYS_fcntl,    SYS_openat,
                             SYS_futex,    SYS_ioctl,  SYS_splice};
  return std::find(std::begin(kCalls), std::end(kCalls), number) != std::end(kCalls);
}

// Our handler is SA_RESTART, so the kernel has wound the interrupted call back to its instruction before the
// signal of the alarm, which is to end that call, was even sent. Undone here: the call fails with EINTR, as
// it would have for that signal alone. A call that was just about to be made fails too.
void end_restarted_call([[maybe_unused]] ucontext_t& interrupted) noexcept {
#if defined(__x86_64__)
  greg_t* registers = interrupted.uc_mcontext.gregs;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): registers are integers
  const auto* code = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
  if (code[0] != 0x0f || code[1] != 0x05 || !may_be_ended(registers[REG_RAX])) return;  // syscall
  registers[REG_RIP] += 2;
  registers[REG_RAX] = -EINTR;
#elif defined(__aarch64__)
  auto& registers = interrupted.uc_mcontext;
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  if (*reinterpret_cast<const std::uint32_t*>(registers.pc) != 0xd4000001U ||  // svc #0
      !may_be_ended(static_cast<long>(registers.regs[8])))
    return;
  registers.pc += 4;
  registers.regs[0] = static_cast<unsigned long long>(-EINTR);
#endif
}

// What the program does at a signal.
struct Handling {
  explicit Handling(int of) noexcept : number(of) {
    if (::sigaction(number, nullptr, &action) != 0) action.sa_handler = SIG_DFL;
  }
  bool is_a_function() const noexcept { return action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN; }
  bool ends_calls() const noexcept { return is_a_function() && (action.sa_flags & SA_RESTART) == 0; }
  // Whether the kernel, told to send it, would do no more than call() does: on this stack, now.
  bool can_be_called(const ucontext_t& interrupted) const noexcept {
    const bool on_this_stack = (action.sa_flags & SA_ONSTACK) != 0 || interrupted.uc_stack.ss_size == 0;
    const bool of_job_control =  // to send one drops others that are pending
        number == SIGCONT || number == SIGTSTP || number == SIGTTIN || number == SIGTTOU;
    return is_a_function() && on_this_stack && !of_job_control &&
           (action.sa_flags & static_cast<int>(SA_RESETHAND)) == 0 &&
           ::sigismember(&interrupted.uc_sigmask, number) == 0;
  }
  // Of several signals that are pending the kernel takes the lowest first, and puts the frame of the next one
  // on top. So the handlers of lower ones would run after this one; call() would let them in before it, and
  // they may leave by siglongjmp(3).
  bool lower_ones_wait(const ucontext_t& interrupted) const noexcept {
    sigset_t pending;
    if (::sigpending(&pending) != 0) return true;
    for (int other = 1; other < number; ++other)
      if (::sigismember(&pending, other) == 1 && ::sigismember(&interrupted.uc_sigmask, other) == 0)
        return true;
    return false;
  }
  void send(pid_t tid) const noexcept { ::syscall(SYS_tgkill, ::getpid(), tid, number); }
  // As the kernel does (sigaction(2)): the signals of sa_mask and this one wait, those that were blocked do,
  // and no others. Not noexcept: a handler may end its thread.
  void call(ucontext_t& interrupted) const {
    sigset_t blocked;
    ::sigorset(&blocked, &interrupted.uc_sigmask, &action.sa_mask);
    if ((action.sa_flags & SA_NODEFER) == 0) ::sigaddset(&blocked, number);
    ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
    if ((action.sa_flags & SA_SIGINFO) == 0) return action.sa_handler(number);
    siginfo_t info{};
    info.si_signo = number;
    info.si_code = SI_TKILL;
    info.si_pid = ::getpid();
    info.si_uid = ::getuid();
    action.sa_sigaction(number, &info, &interrupted);
  }

  int number;
  struct sigaction action{};
};

// In the thread itself. True: one of the signals is to end the call that it interrupts. One of them may be
// left to the caller, who calls its handler when the list is free again. That spares the thread a return to
// the kernel and a second frame on its stack, more than half of the time between the first and that handler.
bool serve(ThreadAlarms& alarms, const ucontext_t& interrupted, std::optional<Handling>& to_call) noexcept
    REQUIRES(alarms) {
  bool ends = false;
  for (AlarmRecord* record = alarms.first; record != nullptr; record = record->next_listed) {
    Core& core = *record->socket->core;
    const int number = core.deliver_here(*record);
    if (number == 0) continue;
    const Handling theirs(number);
    if (!to_call && theirs.can_be_called(interrupted))
      to_call = theirs;
    else
      theirs.send(alarms.tid);  // it comes when this handler lets it
    ends |= theirs.ends_calls();
    core.delivered_here(*record);
  }
  return ends;
}

// A signal that came while our handler ran, from the dispatcher that was tired of waiting for us, say, would
// have ended the call, too, but is handled only when the call has been wound back. One that comes between
// this look and our return is like one that comes just before the call is made.
bool pending_ends_calls(const ucontext_t& interrupted) noexcept {
  sigset_t pending;
  if (::sigpending(&pending) != 0) return false;
  for (int number = 1; number < NSIG; ++number)
    if (::sigismember(&pending, number) == 1 && ::sigismember(&interrupted.uc_sigmask, number) == 0 &&
        Handling(number).ends_calls())
      return true;
  return false;
}

// To the program's own handler. True: it is one that ends calls.
bool pass_on(int number, siginfo_t* info, void* context) {
  if (previous_io.sa_handler == SIG_DFL || previous_io.sa_handler == SIG_IGN) return false;
  if ((previous_io.sa_flags & SA_SIGINFO) != 0)
    previous_io.sa_sigaction(number, info, context);
  else
    previous_io.sa_handler(number);
  return (previous_io.sa_flags & SA_RESTART) == 0;
}

// The kernel sends two for a FIN, and one for each socket that has news: who is here already need not come
// again, on top of the handler of the signal that is sent now. Before serve(), which then sees it all.
// Not without an end, though more may come as fast.
void take_what_is_pending(int number) noexcept {
  constexpr int kMost = 64;
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, number);
  const timespec now{};
  for (int i = 0; i < kMost; ++i)
    if (::syscall(SYS_rt_sigtimedwait, &set, nullptr, &now, NSIG / 8) != number) return;
}

void on_signal(int number, siginfo_t* info, void* context) {
  auto& interrupted = *static_cast<ucontext_t*>(context);
  const int saved = errno;
  bool ends = false;
  std::optional<Handling> to_call;
  if (number != SIGIO) take_what_is_pending(number);
  if (ThreadAlarms* alarms = my_alarms_now; alarms != nullptr) {
    if (alarms->try_lock()) {
      alarms->missed.store(false);
      ends = serve(*alarms, interrupted, to_call);
      alarms->unlock();
    }
    // A handler of the program's for SIGIO comes first, and may leave by siglongjmp(3), too.
    if (to_call && (number == SIGIO || to_call->lower_ones_wait(interrupted))) {
      to_call->send(alarms->tid);
      to_call.reset();
    }
  }
  errno = saved;
  if (number == SIGIO) ends |= pass_on(number, info, context);
  const int theirs = errno;
  if (ends || pending_ends_calls(interrupted)) end_restarted_call(interrupted);
  errno = theirs;
  if (to_call) to_call->call(interrupted);
}

bool is_ours(int number) noexcept {
  struct sigaction now{};
  return ::sigaction(number, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 &&
         now.sa_sigaction == on_signal;
}

void unlist(AlarmRecord& record) noexcept REQUIRES(record.mutex) {
  if (!record.listed_in) return;
  const std::shared_ptr<ThreadAlarms> alarms = std::move(record.listed_in);
  alarms->lock();
  for (AlarmRecord** link = &alarms->first; *link != nullptr; link = &(*link)->next_listed) {
    if (*link != &record) continue;
    *link = record.next_listed;
    break;
  }
  alarms->unlock();
}

int live_descriptor(const AlarmRecord& record) noexcept {
  return file_identity(record.fd) == record.socket->cookie ? record.fd : -1;
}

// What was there before is remembered the first time.
bool own(Socket& socket, int fd, int signal, pid_t tid) noexcept {
  const MutexLock lock(Sigio::owner_mutex);
  if (socket.sigio_owner.load() == tid) return true;
  if (!socket.sigio_saved) {
    std::unique_ptr<SigioSaved, SigioSavedDeleter> saved(new (std::nothrow) SigioSaved);
    if (!saved) return false;
    saved->flags = ::fcntl(fd, F_GETFL);
    saved->signal = ::fcntl(fd, F_GETSIG);
    if (saved->flags < 0 || saved->signal < 0 || ::fcntl(fd, F_GETOWN_EX, &saved->owner) != 0) return false;
    socket.sigio_saved = std::move(saved);
  }
  const f_owner_ex owner{F_OWNER_TID, tid};
  if (::fcntl(fd, F_SETOWN_EX, &owner) != 0 || ::fcntl(fd, F_SETSIG, signal) != 0) return false;
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_ASYNC) != 0) return false;
  socket.sigio_owner.store(tid);
  return true;
}

}  // namespace

Result<std::shared_ptr<Sigio>> Sigio::acquire() {
  const MutexLock lock(process_mutex);
  if (process_one == nullptr) {
    const int signal = free_realtime_signal();
    if (signal == 0)
      return fail(Error(Errc::unsupported, "signal-driven I/O: every real-time signal has a handler"));
    auto one = std::make_unique<Sigio>(signal);
    if (auto ok = one->install(); !ok) return fail(ok.error());
    process_one = one.release();
  }
  ++users;
  return std::shared_ptr<Sigio>(process_one, [](Sigio* one) {
    const MutexLock giving_up(process_mutex);
    if (--users > 0 || some_not_released.load()) return;
    one->uninstall();
    process_one = nullptr;
    delete one;
  });
}

bool Sigio::must_stay() noexcept { return some_not_released.load(); }

Result<void> Sigio::install() {
  struct sigaction ours{};
  ours.sa_sigaction = on_signal;
  // All signals wait until the handler is done, so that a handler of the program that leaves by siglongjmp(3)
  // cannot interrupt it halfway.
  ::sigfillset(&ours.sa_mask);
  // Ordinary data must not end the thread's system calls. Where their restart cannot be undone, it does.
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | (kCanEndCalls ? SA_RESTART : 0);
  if (::sigaction(SIGIO, nullptr, &previous_io) != 0 || ::sigaction(SIGIO, &ours, nullptr) != 0 ||
      ::sigaction(signal_, &ours, &previous_own) != 0)
    return fail(Error::from_errno(errno, "sigaction() for signal-driven I/O"));
  return {};
}

void Sigio::uninstall() noexcept {
  // Signals that are still pending, in a thread that blocks them, say, would end the process: ignoring them
  // drops them (sigaction(2)).
  struct sigaction ignore{};
  ignore.sa_handler = SIG_IGN;
  if (is_ours(signal_)) {
    ::sigaction(signal_, &ignore, nullptr);
    ::sigaction(signal_, &previous_own, nullptr);
  }
  if (is_ours(SIGIO)) ::sigaction(SIGIO, &previous_io, nullptr);
}

bool Sigio::enter(AlarmRecord& record) noexcept {
  const pid_t tid = current_thread();
  if (record.socket->sigio_owner.load() != tid) {
    const int fd = live_descriptor(record);
    if (fd < 0 || !own(*record.socket, fd, signal_, tid)) return false;
  }
  if (!make_my_alarms(tid)) return false;
  const MutexLock lock(record.mutex);
  if (record.listed_in == my_alarms.list) return true;
  unlist(record);
  ThreadAlarms& mine = *my_alarms.list;
  mine.signal.store(signal_);
  mine.lock();
  record.listed_in = my_alarms.list;
  record.next_listed = mine.first;
  mine.first = &record;
  mine.unlock();
  return true;
}

void Sigio::leave(AlarmRecord& record) noexcept {
  const MutexLock lock(record.mutex);
  unlist(record);
}

void Sigio::release(Socket& socket) noexcept {
  const MutexLock lock(owner_mutex);
  if (!socket.sigio_saved) return;
  const int fd = file_identity(socket.registered_fd) == socket.cookie ? socket.registered_fd : -1;
  socket.sigio_owner.store(0);
  if (fd < 0) {  // a dup that we know nothing of may keep the flags, and then somebody must handle the signal
    // The kernel side has seen the last one go?
    if (!(seen(*socket.state) & events::closed)) some_not_released.store(true);
    return;
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0) ::fcntl(fd, F_SETFL, (flags & ~O_ASYNC) | (socket.sigio_saved->flags & O_ASYNC));
  ::fcntl(fd, F_SETSIG, socket.sigio_saved->signal);
  ::fcntl(fd, F_SETOWN_EX, &socket.sigio_saved->owner);
  socket.sigio_saved.reset();
}

}  // namespace sockalarm::detail
