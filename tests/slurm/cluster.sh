#!/usr/bin/env bash
# A SLURM of two nodes on this machine, for tests: it disturbs nothing that runs here and leaves nothing behind.
#
#   tests/slurm/cluster.sh          starts it, prints the folder that holds its slurm.conf, and stops it at the end
#                                   of input (Ctrl-D) or when it is told to end (Ctrl-C). Use it from another shell:
#                                   export SLURM_CONF=FOLDER/slurm.conf; sinfo
#   tests/slurm/cluster.sh check    says in one sentence what is missing, if anything (exit status 1)
#   tests/slurm/cluster.sh install  installs it (Debian and Ubuntu, as root)
#
# Everything is its own: a folder below /tmp, free ports, a munge key and socket. End of input stops it, so that it
# also stops when the test run that started it is killed. Each node says it has two CPUs and one GPU without a
# device behind it, so that jobs ask for GPUs in the way they do on a cluster. Needs root (slurmd does).
set -euo pipefail

PROGRAMS=(slurmctld slurmd sbatch srun scontrol munged)

check() {
  local program missing=()
  for program in "${PROGRAMS[@]}"; do
    PATH=$PATH:/usr/sbin type -P "$program" >/dev/null || missing+=("$program")
  done
  if ((${#missing[@]})); then
    echo "SLURM is not installed (missing: ${missing[*]}); as root on Debian or Ubuntu: tests/slurm/cluster.sh install"
    return 1
  elif ((EUID != 0)); then
    echo "SLURM's daemons need root here; run the tests as root (in a container, for instance)"
    return 1
  fi
}

install() {
  check >/dev/null && return
  if ((EUID != 0)) || ! type -P apt-get >/dev/null; then
    echo "SLURM cannot be installed: that takes root and apt-get (packages slurm-wlm and munge)" >&2
    return 1
  fi
  local log
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  # The packages' own services stay off: policy-rc.d says no while they are set up, if it isn't there already.
  local policy=/usr/sbin/policy-rc.d mine=
  [[ -e $policy ]] || { mine=yes && printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy; }
  if ! { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge; } >"$log" 2>&1; then
    [[ -z $mine ]] || rm -f $policy
    tail -n 5 "$log" >&2
    echo "SLURM cannot be installed: apt-get failed (above, the end of $log); the packages are slurm-wlm and munge" >&2
    return 1
  fi
  [[ -z $mine ]] || rm -f $policy
  rm -f "$log"
  check
}

free_ports() { # COUNT: as many ports that nothing listens on
  python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[s.getsockname()[1] for s in sockets])
PY
}

configure() { # writes slurm.conf and the munge key into $DIR
  local host controller n1 n2
  host=$(hostname -s)
  read -r controller n1 n2 < <(free_ports 3)
  (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge.key")
  mkdir "$DIR/state" "$DIR/log"
  cat >"$DIR/slurm.conf" <<CONF
ClusterName=ultralong
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credential has expired, two minutes by default.
AuthInfo=socket=$DIR/munge.socket,cred_expire=10
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/%n.pid
SlurmctldLogFile=$DIR/log/slurmctld
SlurmdLogFile=$DIR/log/%n
SlurmdDebug=info
SlurmctldDebug=debug2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
# A node that says nothing for this long is down, and its jobs are requeued (300 seconds by default).
SlurmdTimeout=10
InactiveLimit=0
KillWait=15
MinJobAge=600
SchedulerParameters=sched_interval=2,sched_min_interval=100000
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n1 CPUs=2 Gres=gpu:1
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n2 CPUs=2 Gres=gpu:1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
CONF
  echo 'Name=gpu File=/dev/null' >"$DIR/gres.conf"
}

ours() { # ids of this cluster's processes: daemons and job steps carry ULTRALONG_SLURM, ranks a job's id
  {
    grep -lszxF "ULTRALONG_SLURM=$DIR" /proc/[0-9]*/environ
    grep -lszxF "SLURM_CONF=$DIR/slurm.conf" /proc/[0-9]*/environ | xargs -r grep -lsz '^SLURM_JOB_ID='
  } | tr -dc '0-9\n' | sort -u
}

stop() {
  trap '' EXIT INT TERM HUP
  local _ pids
  for _ in 1 2 3; do
    mapfile -t pids < <(ours)
    ((${#pids[@]})) || break
    kill -KILL "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null # or bash says what it killed
    sleep 0.2
  done
  rm -rf "$DIR"
}

start() {
  DIR=$(mktemp -d /tmp/ultralong-slurm.XXXXXX)
  trap stop EXIT
  trap 'exit 130' INT TERM HUP
  chmod 755 "$DIR"
  export SLURM_CONF=$DIR/slurm.conf PATH=$PATH:/usr/sbin
  configure
  export ULTRALONG_SLURM=$DIR
  munged --foreground --force --key-file "$DIR/munge.key" --socket "$DIR/munge.socket" --pid-file "$DIR/munged.pid" \
    --log-file "$DIR/log/munged" --seed-file "$DIR/munge.seed" </dev/null >/dev/null 2>&1 &
  local _
  for _ in {1..100}; do [[ -S $DIR/munge.socket ]] || sleep 0.1; done
  slurmctld -D </dev/null >/dev/null 2>&1 &
  slurmd -D -N n1 </dev/null >/dev/null 2>&1 &
  slurmd -D -N n2 </dev/null >/dev/null 2>&1 &
  export -n ULTRALONG_SLURM
  for _ in {1..300}; do
    [[ $(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u) == idle ]] && return
    sleep 0.1
  done
  tail -n 5 "$DIR"/log/* >&2
  echo "SLURM did not start within 30 seconds; above, the ends of its logs" >&2
  return 1
}

case "${1:-start}" in
check) check ;;
install) install ;;
start)
  check >&2
  start
  echo "$DIR"
  while read -r _; do :; done # until the end of input
  ;;
*)
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit 2
  ;;
esac
