# Completion of meta-proxy for bash.
_meta_proxy() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]}
  COMPREPLY=()
  case ${COMP_WORDS[COMP_CWORD - 1]} in
    --via | --cluster | --clusters-root | --control-root | --every | --exclude | --from | --if-version | --last | --like | --listen | --max-delete | --metas | --proxies | --replace | --root | --timeout-ms | --to | --wait-s | --why | --yes-tables | --zookeeper) return ;;
    --protocol)
      mapfile -t COMPREPLY < <(compgen -W 'thft rdsn' -- "$word")
      return
      ;;
    --routes | --config | --control-digest-file | --digest-file | --file | --plan | --save | --tables-file)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return
      ;;
  esac
  local words files=()
  case $command in
    check) words='--strict --json --routes' files=(-f) ;;
    help) words='run check query route' ;;
    route)
      words='--apply --back --broken --clients-moved --cluster --clusters-root --config --control-digest-file --control-root --digest-file --every --exclude --file --forget --from --if-version --json --keep-undo --last --like --listen --max-delete --max-refused --metas --moving-accepted --no-probe --not-for-go --other-name --other-partition-count --plan --probe --proxies --prune --replace --root --save --split-brain-accepted --table --tables-file --target-accepted --timeout-ms --to --wait-s --why --yes-tables --zookeeper'
      if ((COMP_CWORD == 2)); then
        words='ls get set rm switch move finish fence undo metas import verify history accept export'
      fi
      ;;
    query) words='--via --protocol --json --timeout-ms' ;;
    *) words='--routes --listen --help --version' files=(-f) ;;
  esac
  if ((COMP_CWORD == 1)); then
    words="check query route help $words"
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" "${files[@]}" -- "$word")
}
complete -o filenames -F _meta_proxy meta-proxy
