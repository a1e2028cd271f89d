# Completion of meta-proxy for fish.
complete -c meta-proxy -n __fish_use_subcommand -a check -d 'Say what is wrong with a settings file'
complete -c meta-proxy -n __fish_use_subcommand -a query -d 'Ask as a client does'
complete -c meta-proxy -n __fish_use_subcommand -a route -d 'Read and write routes'
complete -c meta-proxy -n __fish_use_subcommand -a help -d 'Say more of a command'
complete -c meta-proxy -n 'not __fish_seen_subcommand_from check query route help' -l routes -r -d 'Routes from this file'
complete -c meta-proxy -n 'not __fish_seen_subcommand_from check query route help' -l listen -x -d 'Where clients connect'
complete -c meta-proxy -n 'not __fish_seen_subcommand_from check query route help' -l help -d 'Print help'
complete -c meta-proxy -n 'not __fish_seen_subcommand_from check query route help' -l version -d 'Print the version'
complete -c meta-proxy -n '__fish_seen_subcommand_from query' -l via -x -d 'Whom to ask, host:port'
complete -c meta-proxy -n '__fish_seen_subcommand_from query' -l json -d 'Print JSON'
complete -c meta-proxy -n '__fish_seen_subcommand_from query' -l protocol -x -a 'thft rdsn' -d 'How to ask'
complete -c meta-proxy -n '__fish_seen_subcommand_from query' -l timeout-ms -x -d 'Give up after so many ms'
complete -c meta-proxy -n '__fish_seen_subcommand_from check' -l strict -d 'Warnings count as faults'
complete -c meta-proxy -n '__fish_seen_subcommand_from check' -l json -d 'Print JSON'
complete -c meta-proxy -n '__fish_seen_subcommand_from check' -l routes -r -d 'Check this routes file, too'
complete -c meta-proxy -n '__fish_seen_subcommand_from help' -x -a 'run check query'
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -x -a 'ls get set rm switch move finish fence undo metas import verify history accept export'
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l apply
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l back
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l broken
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l clients-moved
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l cluster -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l clusters-root -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l config -r
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l control-digest-file -r
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l control-root -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l digest-file -r
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l every -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l exclude -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l file -r
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l forget
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l from -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l if-version -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l json
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l keep-undo
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l last -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l like -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l listen -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l max-delete -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l max-refused -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l metas -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l moving-accepted
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l no-probe
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l not-for-go
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l other-name
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l other-partition-count
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l plan -r
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l probe
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l proxies -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l prune
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l replace -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l root -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l save -r
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l split-brain-accepted
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l table -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l tables-file -r
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l target-accepted
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l timeout-ms -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l to -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l wait-s -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l why -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l yes-tables -x
complete -c meta-proxy -n '__fish_seen_subcommand_from route' -l zookeeper -x
