//! Where traces go: our own flags, and where they say nothing, OpenTelemetry's variables.

use std::{fs, path::PathBuf};

use opentelemetry_sdk::trace::Sampler;

use super::{Refused, refuse};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Otlp {
    /// Address of a collector that takes OTLP over gRPC, as in http://127.0.0.1:4317
    /// [default: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT; without any, nothing is traced]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Authority that signed the certificate of an https:// collector, PEM
    /// [default: OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE, OTEL_EXPORTER_OTLP_CERTIFICATE]
    #[arg(long, value_name = "FILE")]
    otlp_ca_file: Option<PathBuf>,
}

/// Where traces go, and which.
#[derive(Clone, Debug)]
pub struct Traces {
    /// The collector.
    pub endpoint: String,
    /// Who vouches for it, where it is to prove itself.
    pub ca_file: Option<PathBuf>,
    /// Which traces are recorded.
    pub sampler: Sampler,
}

/// `http://` or `https://`, a host and a port; else what is wrong, which tells nothing of the text: it may hold a password.
fn address(text: &str) -> Result<String, &'static str> {
    const FORM: &str = "write it as in http://collector:4317, the port for gRPC, with no path";
    let uri: http::Uri = text.trim().parse().map_err(|_| FORM)?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("write no user and no password into it: use OTEL_EXPORTER_OTLP_HEADERS");
    }
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    if !known || uri.host().is_none_or(str::is_empty) || uri.path().len() > 1 || uri.query().is_some() {
        return Err(FORM);
    }
    Ok(text.trim().to_owned())
}

/// Where traces go, if anywhere.
pub(super) fn traces(flags: &Otlp, env: &impl Fn(&str) -> Option<String>) -> Result<Option<Traces>, Refused> {
    let said = |names: &[&'static str]| {
        names.iter().find_map(|name| Some((*name, env(name).filter(|value| !value.is_empty())?)))
    };
    let exporter = said(&["OTEL_TRACES_EXPORTER"]);
    let none = exporter.as_ref().is_some_and(|(_, value)| value == "none");
    if none || said(&["OTEL_SDK_DISABLED"]).is_some_and(|(_, value)| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let endpoint = match &flags.otlp_endpoint {
        Some(endpoint) => match address(endpoint) {
            Ok(endpoint) => endpoint,
            Err(why) => return refuse("otlp-endpoint", why),
        },
        None => {
            let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
            let Some((name, value)) = said(&names) else { return Ok(None) };
            // What is meant for others in the same environment is taken where it can be.
            let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
            if let Some((name, _)) = said(&protocols).filter(|(_, value)| value != "grpc") {
                let why = "write grpc, which is all that is spoken, with the collector's port for it as endpoint; \
                           or give --otlp-endpoint, which goes before";
                return Err(variable(name, why));
            }
            if let Some((name, _)) = exporter.filter(|(_, value)| value != "otlp") {
                return Err(variable(name, "write otlp or none"));
            }
            address(&value).map_err(|why| variable(name, why))?
        }
    };
    let secure = endpoint.starts_with("https://");
    let certificates = ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
    let ca_file = match &flags.otlp_ca_file {
        Some(_) if !secure => {
            return refuse("otlp-ca-file", "is of no use with http://: write https:// in --otlp-endpoint");
        }
        Some(file) => Some(file.clone()),
        None => said(&certificates).map(|(_, file)| file.into()).filter(|_| secure),
    };
    match ca_file.as_ref().map(fs::read_to_string) {
        None if secure => {
            return refuse("otlp-ca-file", "must be given with https://: no authority is trusted by itself");
        }
        Some(Ok(text)) if !text.contains("-----BEGIN ") => {
            return refuse("otlp-ca-file", "holds no PEM block");
        }
        Some(Err(error)) => return refuse("otlp-ca-file", format!("cannot be read: {error}")),
        None | Some(Ok(_)) => {}
    }
    let sampler = sampler(said(&["OTEL_TRACES_SAMPLER"]), said(&["OTEL_TRACES_SAMPLER_ARG"]))?;
    Ok(Some(Traces { endpoint, ca_file, sampler }))
}

/// What OpenTelemetry's variables say of which traces are recorded; who calls decides, unless they say otherwise.
fn sampler(
    name: Option<(&'static str, String)>,
    argument: Option<(&'static str, String)>,
) -> Result<Sampler, Refused> {
    let by_parent = |root| Sampler::ParentBased(Box::new(root));
    let Some((variable_name, name)) = name else { return Ok(by_parent(Sampler::AlwaysOn)) };
    let ratio = || match argument {
        None => Ok(1.0),
        Some((name, text)) => match text.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => Err(variable(name, "write the share of traces that are recorded, 0 to 1, as in 0.1")),
        },
    };
    Ok(match name.as_str() {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(ratio()?),
        "parentbased_always_on" => by_parent(Sampler::AlwaysOn),
        "parentbased_always_off" => by_parent(Sampler::AlwaysOff),
        "parentbased_traceidratio" => by_parent(Sampler::TraceIdRatioBased(ratio()?)),
        _ => {
            let why = "write always_on, always_off, traceidratio, or one of them with parentbased_ before it";
            return Err(variable(variable_name, why));
        }
    })
}

fn variable(name: &'static str, why: &str) -> Refused {
    Refused::Variable { name, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusal, with};

    #[test]
    fn traces_go_where_the_flag_says_and_else_where_opentelemetry_s_variables_do() {
        let endpoint = |flags: &[&str], variables: &[(&str, &str)]| {
            with(flags, variables).unwrap().traces.map(|traces| traces.endpoint)
        };
        assert_eq!(endpoint(&[], &[]), None);
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:2/");
        let own = ("CONCORDAT_OTLP_ENDPOINT", "http://c:3");
        assert_eq!(endpoint(&[], &[general]).unwrap(), "http://a:1");
        assert_eq!(endpoint(&[], &[general, of_traces]).unwrap(), "http://b:2/");
        assert_eq!(endpoint(&[], &[general, own]).unwrap(), "http://c:3");
        assert_eq!(endpoint(&["--otlp-endpoint", "http://d:4"], &[own]).unwrap(), "http://d:4");
        // Others of the same environment may speak otherwise: what is said to us alone counts.
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert_eq!(endpoint(&[], &[own, general, http]).unwrap(), "http://c:3");
        assert_eq!(endpoint(&[], &[own, ("OTEL_TRACES_EXPORTER", "none")]), None);
        assert_eq!(endpoint(&[], &[own, ("OTEL_SDK_DISABLED", "true")]), None);
    }

    #[test]
    fn who_calls_decides_what_is_traced_unless_it_is_said_otherwise() {
        let sampler = |variables: &[(&str, &str)]| {
            let variables = [&[("CONCORDAT_OTLP_ENDPOINT", "http://a:1")], variables].concat();
            format!("{:?}", with(&[], &variables).unwrap().traces.unwrap().sampler)
        };
        assert_eq!(sampler(&[]), "ParentBased(AlwaysOn)");
        let ratio = |name| [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        assert_eq!(sampler(&ratio("parentbased_traceidratio")), "ParentBased(TraceIdRatioBased(0.25))");
        assert_eq!(sampler(&ratio("traceidratio")), "TraceIdRatioBased(0.25)");
        assert_eq!(sampler(&ratio("always_off")), "AlwaysOff");
    }

    #[test]
    fn traces_that_cannot_go_anywhere_are_refused_with_what_to_change() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1");
        type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
        let table: &[Row<'_>] = &[
            (&["--otlp-endpoint", ""], &[], "otlp-endpoint (CONCORDAT_OTLP_ENDPOINT): write"),
            (&["--otlp-endpoint", "collector:4317"], &[], "http://collector:4317"),
            (&["--otlp-endpoint", "grpc://a:1"], &[], "http://collector:4317"),
            (&["--otlp-endpoint", "http://a:4318/v1/traces"], &[], "no path"),
            (&["--otlp-endpoint", "http://me:secret@a:1"], &[], "no user and no password"),
            (&["--otlp-endpoint", "https://a:1"], &[], "CONCORDAT_OTLP_CA_FILE"),
            (&["--otlp-endpoint", "https://a:1", "--otlp-ca-file", "/no/such/file"], &[], "cannot be read"),
            (&["--otlp-endpoint", "https://a:1", "--otlp-ca-file", "/dev/null"], &[], "no PEM"),
            (&["--otlp-endpoint", "http://a:1", "--otlp-ca-file", "/dev/null"], &[], "write https://"),
            (&[], &[("CONCORDAT_OTLP_ENDPOINT", "a b")], "http://collector:4317"),
            (&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "a:1")], "OTEL_EXPORTER_OTLP_ENDPOINT: "),
            (&[], &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], "write grpc"),
            (&[], &[endpoint, ("OTEL_TRACES_EXPORTER", "zipkin")], "write otlp or none"),
            (&[], &[endpoint, ("OTEL_TRACES_SAMPLER", "most")], "OTEL_TRACES_SAMPLER: write"),
            (
                &[],
                &[endpoint, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "10%")],
                "OTEL_TRACES_SAMPLER_ARG: write",
            ),
        ];
        for (flags, variables, says) in table {
            let why = refusal(flags, variables);
            assert!(why.contains(says) && !why.contains("secret"), "{flags:?}: {says:?} is not in {why}");
        }
    }
}
