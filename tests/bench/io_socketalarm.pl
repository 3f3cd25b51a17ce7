#!/usr/bin/env perl
# SPDX-License-Identifier: Apache-2.0
# The same two measurements for IO::SocketAlarm: what arming and cancelling costs, and how long after the close() of a
# peer process the signal handler of a blocked script begins. One run, one JSON object. io_socketalarm.pl [--quick]
use strict;
use warnings;
use IO::Socket::INET;
use IO::SocketAlarm qw( socketalarm );
use JSON::PP;
use Socket qw( SOL_SOCKET SO_LINGER );
use Time::HiRes qw( clock_gettime CLOCK_MONOTONIC usleep );

my $quick = grep { $_ eq '--quick' } @ARGV;
my ($rounds, $samples) = $quick ? (200, 20) : (20_000, 500);

sub quantile {
  my ($q, @sorted) = @_;
  return $sorted[int($q * $#sorted)];
}

my $listener = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', Proto => 'tcp') or die "listen: $!";
my $port     = $listener->sockport;

# The peer process: connects when it is told to, leaves when it is told to, and says when that was.
pipe(my $commands,   my $command) or die "pipe: $!";
pipe(my $from_child, my $answers) or die "pipe: $!";
my $child = fork() // die "fork: $!";
if ($child == 0) {
  close $command;
  my $socket;
  while (sysread($commands, my $verb, 1)) {
    if ($verb eq 'o') {
      $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp') or die "connect: $!";
      next;
    }
    usleep(200);
    my $now = clock_gettime(CLOCK_MONOTONIC);
    close $socket;
    syswrite($answers, sprintf("%.9f\n", $now));
  }
  exit 0;
}
close $commands;
close $answers;

sub connection {
  syswrite($command, 'o');
  my $ours = $listener->accept or die "accept: $!";
  return $ours;
}

my $socket = connection();
my $begin  = clock_gettime(CLOCK_MONOTONIC);
for (1 .. $rounds) {
  my $alarm = socketalarm($socket);
  $alarm->cancel;
}
my $arm_cancel_ns = 1e9 * (clock_gettime(CLOCK_MONOTONIC) - $begin) / $rounds;
$socket->setsockopt(SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
close $socket;

my (@us, $missed);
$missed = 0;
pipe(my $never, my $silent) or die "pipe: $!";
for (1 .. $samples) {
  my $ours = connection();
  my $handled;
  local $SIG{ALRM} = sub { $handled //= clock_gettime(CLOCK_MONOTONIC); die "alarm\n" };
  eval {
    my $alarm = socketalarm($ours);
    usleep(2000);    # until the background thread sleeps
    syswrite($command, 'c');
    my $bits = '';
    vec($bits, fileno($never), 1) = 1;
    select($bits, undef, undef, 10);
    $alarm->cancel;
    1;
  };
  sysread($from_child, my $line, 64);
  if   (defined $handled) { push @us, 1e6 * ($handled - $line) }
  else                    { ++$missed }
  $ours->setsockopt(SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
  close $ours;
}
close $command;
waitpid($child, 0);

@us = sort { $a <=> $b } @us;
print JSON::PP->new->canonical->encode(
  {settings => {samples => $samples, rounds => $rounds},
   rows     => {
     io_socketalarm => {
       version       => "$IO::SocketAlarm::VERSION",
       arm_cancel_ns => 0 + $arm_cancel_ns,
       samples       => scalar @us,
       missed        => $missed,
       (@us ? (p50_us => quantile(0.5, @us), p90_us => quantile(0.9, @us), p99_us => quantile(0.99, @us)) : ()),
     },
   },
  });
