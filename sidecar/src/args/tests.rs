use std::collections::HashMap;

use super::*;

const LEAST: [(&str, &str); 3] =
    [("CONCORDAT_NAMESPACE", "bank"), ("CONCORDAT_APP", "accounts"), ("HOSTNAME", "accounts-0")];

pub(super) fn with(flags: &[&str], variables: &[(&str, &str)]) -> Result<Settings, Refused> {
    let env: HashMap<_, _> = LEAST.iter().chain(variables).copied().collect();
    let line = ["concordat-sidecar"].iter().chain(flags).map(OsString::from);
    parse(line, |name| env.get(name).map(|value| (*value).to_owned()))
}

pub(super) fn refusal(flags: &[&str], variables: &[(&str, &str)]) -> String {
    with(flags, variables).err().expect("it must be refused").to_string()
}

#[test]
fn the_least_is_enough() {
    let settings = with(&[], &[]).unwrap();
    assert_eq!((settings.namespace.as_str(), settings.app.as_str()), ("bank", "accounts"));
    assert_eq!(settings.pod, "accounts-0");
    assert_eq!((settings.api_port, settings.admin.1, settings.app_port), (4700, 4701, None));
    assert_eq!(settings.etcd_endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(settings.session_ttl, Duration::from_secs(10));
    assert!(settings.token.is_none() && settings.etcd_tls.is_none() && settings.etcd_user.is_none());
}

#[test]
fn a_flag_overrides_its_variable_and_an_empty_variable_is_none() {
    let variables = [("CONCORDAT_API_PORT", "1"), ("CONCORDAT_ETCD_ENDPOINTS", "http://a:1, http://b:2")];
    let settings = with(&["--api-port", "2"], &variables).unwrap();
    assert_eq!(settings.api_port, 2);
    assert_eq!(settings.etcd_endpoints, ["http://a:1", "http://b:2"]);
    assert_eq!(with(&[], &[("CONCORDAT_API_PORT", "")]).unwrap().api_port, 4700);
}

#[test]
fn dapr_is_served_on_its_own_ports_once_it_is_switched_on() {
    let ports = |http, grpc| Some(DaprPorts { http, grpc });
    assert_eq!(with(&["--dapr-http-port", "4700"], &[]).unwrap().dapr, None);
    assert_eq!(with(&["--dapr"], &[]).unwrap().dapr, ports(3500, 50001));
    let variables = [("CONCORDAT_DAPR", "true"), ("CONCORDAT_DAPR_GRPC_PORT", "2")];
    assert_eq!(with(&["--dapr-http-port", "1"], &variables).unwrap().dapr, ports(1, 2));
    assert_eq!(with(&["--dapr=false"], &variables).unwrap().dapr, None);
}

#[test]
fn the_variables_kubernetes_makes_for_a_service_do_no_harm() {
    let links = [("CONCORDAT_PORT", "tcp://10.0.0.1:80"), ("CONCORDAT_SERVICE_HOST", "10.0.0.1")];
    assert_eq!(with(&[], &links).unwrap().api_port, 4700);
}

#[test]
fn what_cannot_be_used_is_refused_with_what_to_change() {
    let table: &[(&[&str], &str)] = &[
        (&["--nonsense"], "--nonsense"),
        (&["--namespace", "Bank"], "a-z, 0-9"),
        (&["--namespace", "-"], "a-z, 0-9"),
        (&["--app", &"a".repeat(64)], "1 to 63"),
        (&["--api-port", "65536"], "--api-port"),
        (&["--api-port", "x"], "--api-port"),
        (&["--app-port", "0"], "--app-port"),
        (&["--admin-port", "4700"], "must differ"),
        (&["--dapr=perhaps"], "--dapr"),
        (&["--dapr", "--dapr-http-port", "4701"], "must differ from --admin-port"),
        (&["--dapr", "--dapr-grpc-port", "3500"], "must differ from --dapr-http-port"),
        (&["--admin-address", "localhost"], "--admin-address"),
        (&["--etcd-endpoints", ""], "--etcd-endpoints"),
        (&["--etcd-endpoints", "etcd:2379"], "--etcd-endpoints"),
        (&["--etcd-endpoints", "http://a,https://b"], "either all are https"),
        (&["--etcd-endpoints", "http://a/path"], "write it as in"),
        (&["--etcd-ca-file", "/ca.pem"], "https://"),
        (&["--etcd-endpoints", "https://a", "--etcd-ca-file", "/no/such/file"], "CONCORDAT_ETCD_CA_FILE"),
        (&["--etcd-endpoints", "https://a", "--etcd-ca-file", "/dev/null"], "no PEM"),
        (&["--etcd-user", "root"], "--etcd-user"),
        (&["--etcd-password-file", "/dev/null"], "--etcd-password-file"),
        (&["--etcd-user", "root", "--etcd-password-file", "/dev/null"], "is empty"),
        (&["--token-file", "/dev/null"], "CONCORDAT_TOKEN_FILE"),
        (&["--token-file", "/no/such/file"], "cannot read"),
        (&["--new-token-file", "/no/such/folder/token"], "CONCORDAT_NEW_TOKEN_FILE"),
        (&["--new-token-file", "/dev"], "cannot write /dev"),
        (&["--token-file=/dev/null", "--new-token-file=/dev/null"], "cannot be used with"),
        (&["--isolated"], "etcd must know who it is"),
        (&["--isolated", "--etcd-endpoints=https://a"], "etcd must know who it is"),
        (&["--isolated=maybe"], "--isolated"),
        (&["--session-ttl", "1s"], "between 3s and 10m"),
        (&["--session-ttl", "11m"], "between 3s and 10m"),
        (&["--session-ttl", "10"], "not a duration"),
        (&["--drain-grace", "1h"], "between 0s and 10m"),
        (&["--log-format", "xml"], "json"),
        (&["--log", "info,=x=y"], "--log"),
    ];
    for (flags, says) in table {
        let why = refusal(flags, &[]);
        assert!(why.contains(says), "{flags:?}: {says:?} is not in {why}");
    }
    assert!(refusal(&[], &[("CONCORDAT_APP_PORT", "http")]).contains("--app-port"));
}

#[test]
fn what_is_missing_is_named() {
    let nothing = |_: &str| None;
    let why = parse(["sidecar".into()], nothing).err().unwrap().to_string();
    assert!(why.contains("--namespace") && why.contains("--app"), "{why}");
    let no_host = parse(["sidecar", "--namespace=a", "--app=b"].map(OsString::from), nothing);
    assert!(no_host.err().unwrap().to_string().contains("HOSTNAME"));
}

#[test]
fn secrets_are_read_without_the_end_of_their_line() {
    let folder = std::env::temp_dir().join(format!("concordat-args-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (token, ca) = (folder.join("token"), folder.join("ca.pem"));
    fs::write(&token, "secret\n").unwrap();
    fs::write(&ca, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let (token, ca) = (token.to_str().unwrap(), ca.to_str().unwrap());
    let flags = ["--token-file", token, "--etcd-user", "root", "--etcd-password-file", token];
    let settings = with(&flags, &[]).unwrap();
    assert!(settings.token.is_some());
    assert_eq!(settings.etcd_user, Some(("root".into(), "secret".into())));
    let flags = ["--etcd-endpoints", "https://a", "--etcd-cert-file", ca, "--etcd-ca-file", ca];
    assert!(refusal(&flags, &[]).contains("--etcd-cert-file"));
    let flags = [&flags[..], &["--etcd-key-file", ca]].concat();
    assert!(with(&flags, &[]).unwrap().etcd_tls.unwrap().identity.is_some());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_token_that_is_made_is_kept_and_anything_else_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("concordat-token-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("token");
    let made = || {
        let settings = with(&["--new-token-file", file.to_str().unwrap()], &[]).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!((text.len(), fs::metadata(&file).unwrap().permissions().mode() & 0o777), (64, 0o444));
        assert!(settings.token.unwrap().admits(text.as_bytes()));
        text
    };
    let first = made();
    assert_eq!(made(), first, "the app has read it");
    // What a crash left half-way, and what is no token of ours.
    fs::write(folder.join("token.new"), "abc").unwrap();
    for odd in ["", "abc", &first.to_uppercase(), &format!("{first}\n")] {
        fs::remove_file(&file).unwrap();
        fs::write(&file, odd).unwrap();
        assert_ne!(made(), first);
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left there");
    // Nothing is written where anything else is wrong.
    fs::remove_file(&file).unwrap();
    refusal(&["--new-token-file", file.to_str().unwrap(), "--isolated"], &[]);
    assert!(!file.exists());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn help_names_every_variable() {
    let help = refusal(&["--help"], &[]);
    for variable in ["CONCORDAT_NAMESPACE", "CONCORDAT_ETCD_ENDPOINTS", "CONCORDAT_TOKEN_FILE"] {
        assert!(help.contains(variable), "{variable} is not in {help}");
    }
}
