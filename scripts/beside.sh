# Shared by the scripts that run tests in several processes. What each prints is kept, and ends
# with what took it longest.
durations=.weir/durations
mkdir -p "$durations"
longest=(--durations=50 --durations-min=0.3)
running=()
names=()
failed=0

beside() {  # COMMAND...
  # A shell has what it runs beside itself ignore Ctrl-C, but tests must end what they started.
  env --default-signal=INT "$@" &
  running+=($!)
}

test_beside() {  # NAME PYTEST...
  names+=("$durations/$1")
  beside "${@:2}" "${longest[@]}" > "$durations/$1" 2>&1
}

test_here() {  # NAME PYTEST...
  "${@:2}" "${longest[@]}" 2>&1 | tee "$durations/$1" || failed=1
}

end_beside() {
  kill -INT "${running[@]}" 2> /dev/null || true
  wait
}
trap end_beside EXIT

finish() {
  for each in "${running[@]}"; do wait "$each" || failed=1; done
  running=()
  if [ "$failed" = 0 ]; then tail -qn 1 "${names[@]}"; else cat "${names[@]}"; fi
  exit "$failed"
}
