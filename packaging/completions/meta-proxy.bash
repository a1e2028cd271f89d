# Completion of meta-proxy for bash.
_meta_proxy() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]}
  COMPREPLY=()
  case ${COMP_WORDS[COMP_CWORD - 1]} in
    --via | --listen | --timeout-ms) return ;;
    --protocol)
      mapfile -t COMPREPLY < <(compgen -W 'thft rdsn' -- "$word")
      return
      ;;
    --routes)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return
      ;;
  esac
  local words files=()
  case $command in
    check) words='--strict --json --routes' files=(-f) ;;
    help) words='run check query' ;;
    query) words='--via --protocol --json --timeout-ms' ;;
    *) words='--routes --listen --help --version' files=(-f) ;;
  esac
  if ((COMP_CWORD == 1)); then
    words="check query help $words"
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" "${files[@]}" -- "$word")
}
complete -o filenames -F _meta_proxy meta-proxy
