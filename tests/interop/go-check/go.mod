module meta-proxy.test/check

go 1.19
