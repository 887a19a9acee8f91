//! What the chart tells programs, they understand.

use std::{collections::BTreeSet, process::Command};

use clap::{CommandFactory, Parser};
use concordat_operator::args::Args;
use serde_json::Value;

use crate::world::{CASES, NAMESPACE, find, objects};

/// The flag of an argument, without its dashes.
fn flag(argument: &str) -> &str {
    argument.trim_start_matches("--").split('=').next().unwrap()
}

fn arguments(pods: &Value) -> Vec<String> {
    serde_json::from_value(pods["spec"]["template"]["spec"]["containers"][0]["args"].clone()).unwrap()
}

fn deployment(values: &[&str]) -> Value {
    let all = objects(NAMESPACE, values);
    all.into_iter().find(|object| object["kind"] == "Deployment").unwrap()
}

#[test]
fn the_operator_understands_its_flags() {
    for (case, values) in CASES {
        // Files are there in a pod alone.
        let told = arguments(&deployment(values)).into_iter().filter(|argument| !argument.contains("=/etc/"));
        let parsed = Args::try_parse_from(["concordat-operator".to_owned()].into_iter().chain(told));
        parsed.unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

#[test]
fn every_flag_and_variable_is_one_of_the_operator_s() {
    let command = Args::command();
    let known: BTreeSet<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    let variables: BTreeSet<_> =
        command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    for (case, values) in CASES {
        let deployment = deployment(values);
        for argument in arguments(&deployment) {
            let flag = flag(&argument);
            assert!(known.contains(flag), "{case}: --{flag}");
        }
        let env = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
        for variable in env.as_array().unwrap().iter().map(|variable| variable["name"].as_str().unwrap()) {
            assert!(
                !variable.starts_with("CONCORDAT_") || variables.contains(variable),
                "{case}: {variable}"
            );
        }
    }
}

#[test]
fn every_flag_is_one_of_etcd_s() {
    let etcd = etcd_bin_vendored::etcd_bin_path().unwrap();
    let output = Command::new(etcd).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    for values in [CASES[0].1, CASES[1].1, CASES[4].1] {
        let all = objects(NAMESPACE, values);
        let stateful = all.iter().find(|object| object["kind"] == "StatefulSet").unwrap();
        for argument in arguments(stateful) {
            let flag = format!("--{}", flag(&argument));
            let there = help.lines().any(|line| line.trim_start().split(' ').next() == Some(&flag));
            assert!(there, "{flag}");
        }
    }
}

/// A pod's and a Service's port of one name are one port.
#[test]
fn services_lead_to_ports_that_there_are() {
    for (case, values) in CASES {
        let all = objects(NAMESPACE, values);
        for service in all.iter().filter(|object| object["kind"] == "Service") {
            let selector = service["spec"]["selector"].as_object().unwrap();
            let pods = all.iter().find(|object| {
                let labels = &object["spec"]["template"]["metadata"]["labels"];
                selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            });
            let pods =
                pods.unwrap_or_else(|| panic!("{case}: {} leads nowhere", service["metadata"]["name"]));
            let ports = pods["spec"]["template"]["spec"]["containers"][0]["ports"].as_array().unwrap();
            for port in service["spec"]["ports"].as_array().unwrap() {
                assert!(ports.iter().any(|of| of["name"] == port["targetPort"]), "{case}: {port}");
            }
        }
    }
    let all = objects(NAMESPACE, &[]);
    let admin = find(&all, "Service concordat-operator")["spec"]["ports"][0]["port"].as_u64();
    let default = Args::try_parse_from(["concordat-operator"]).unwrap().admin_listen.port();
    assert_eq!(admin, Some(default.into()));
}
