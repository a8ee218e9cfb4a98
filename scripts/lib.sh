# shellcheck shell=bash
# What the scripts beside this share. Works with bash 3.2, which is what macOS has.

# The group that signals are passed on to, and the signal that came before there was one.
group='' pending=''

# run_in_group COMMAND...: runs COMMAND in a process group of its own and returns its exit code.
#
# A signal to us reaches the group once, however it came: a program that takes a second SIGTERM as "now!"
# must not see two because a terminal told the whole family and we told it again. COMMAND gets the terminal,
# so that Ctrl-C is COMMAND's to answer, and not the end of the `make` that called us. HUP, a closed terminal,
# asks for the same orderly stop as TERM. Ctrl-Z is ignored: nobody could bring a group stopped like that back.
run_in_group() {
  local code again
  group=''
  trap 'signal_group INT' INT
  trap 'signal_group TERM' TERM HUP
  set -m
  (
    exec 8>&- # with-postgres's lifeline is not COMMAND's to hold
    take_terminal "$$"
    trap '' TSTP
    exec "$@"
  ) &
  group=$!
  set +m
  [[ -z $pending ]] || signal_group "$pending"

  # A trap ends `wait` early, with a code that is not COMMAND's. And a signal just before `wait` blocks is only seen
  # when a child ends: the sleep does.
  while
    sleep 0.1 >/dev/null 2>&1 &
    wait "$group" 2>/dev/null
    code=$?
    kill -0 "$group" 2>/dev/null
  do :; done
  # COMMAND is gone. Ask again for its code, unless bash has missed the end, which it can if a signal came with it:
  # then it would wait for ever.
  if ! jobs -rp | grep -qx "$group"; then
    wait "$group" 2>/dev/null
    again=$?
    [[ $again == 127 ]] || code=$again
  fi

  take_terminal "$group"
  return "$code"
}

signal_group() {
  if [[ -z $group ]]; then pending=$1; else kill -s "$1" -- "-$group" 2>/dev/null || true; fi
}

# take_terminal PID: makes our process group the one that the terminal's keys reach, if that is PID's now. Bash cannot
# do this for a job that it also wants to signal, perl can; without perl Ctrl-C reaches COMMAND by way of the traps.
take_terminal() {
  [[ -t 0 ]] || return 0
  # shellcheck disable=SC2016
  perl -MPOSIX=tcgetpgrp,tcsetpgrp -e '
    my ($pid) = @ARGV;
    my $from = getpgrp $pid;
    $from = $pid if $from < 0; # it led the group, and is gone
    $SIG{TTOU} = "IGNORE"; # as the background is stopped otherwise
    tcsetpgrp(0, getpgrp 0) if tcgetpgrp(0) == $from' -- "$1" 2>/dev/null || true
}

# start_peer PROGRAM: starts the gRPC peer on a free port, in a process group of its own, until we end. Exports
# APP__CATALOG__ENDPOINT.
start_peer() {
  local pipe line
  pipe=$(mktemp -u)
  mkfifo "$pipe"
  set -m
  "$1" 127.0.0.1:0 >"$pipe" &
  peer=$!
  set +m
  trap stop_peer EXIT
  exec 7<"$pipe"
  rm "$pipe"
  read -r line <&7 || { echo 'the gRPC peer did not start' >&2; exit 1; }
  export APP__CATALOG__ENDPOINT=http://${line##* }
  # what it says of each call would come between the service's own lines
  cat <&7 >/dev/null &
  exec 7<&-
}

# shellcheck disable=SC2317  # a trap calls it
stop_peer() {
  kill "$peer" 2>/dev/null || true
  wait "$peer" 2>/dev/null || true
}
