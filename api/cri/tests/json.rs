//! Messages as JSON: the protobuf specification's mapping, and deterministic encodings.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;

use api_cri::v1::security_profile::ProfileType;
use api_cri::v1::*;
use prost_types::FileDescriptorSet;
use protox::prost::Message;
use serde_json::json;

#[test]
fn values_are_written_as_the_mapping_says() {
    let status = ContainerStatus {
        id: "c1".into(),
        state: ContainerState::ContainerExited.into(),
        created_at: i64::MAX,
        exit_code: -1,
        mounts: vec![Mount {
            propagation: MountPropagation::PropagationBidirectional.into(),
            uid_mappings: vec![IdMapping { host_id: u32::MAX, container_id: 0, length: 1 }],
            ..Default::default()
        }],
        labels: BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]),
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser { uid: 7, gid: 8, supplemental_groups: vec![9, 10] }),
        }),
        ..Default::default()
    };
    let value = serde_json::to_value(&status).unwrap();
    assert_eq!(value["state"], "CONTAINER_EXITED");
    assert_eq!(value["createdAt"], "9223372036854775807");
    assert_eq!(value["exitCode"], -1);
    assert_eq!(value["mounts"][0]["propagation"], "PROPAGATION_BIDIRECTIONAL");
    assert_eq!(value["mounts"][0]["uidMappings"][0]["hostId"], u32::MAX);
    assert_eq!(value["labels"], json!({"a": "1", "b": "2"}));
    assert_eq!(
        value["user"]["linux"],
        json!({"uid": "7", "gid": "8", "supplementalGroups": ["9", "10"]})
    );
    assert_eq!(value["metadata"], json!(null));
}

#[test]
fn names_that_are_not_snake_case_stay() {
    let config = ContainerConfig {
        cdi_devices: vec![CdiDevice { name: "v/c=d".into() }],
        ..Default::default()
    };
    let value = serde_json::to_value(&config).unwrap();
    assert_eq!(value["CDIDevices"], json!([{"name": "v/c=d"}]));
    let data = PsiData { total: 3, avg10: 0.5, ..Default::default() };
    assert_eq!(
        serde_json::to_value(data).unwrap(),
        json!({"Total": "3", "Avg10": 0.5, "Avg60": 0.0, "Avg300": 0.0})
    );
}

#[test]
fn an_unknown_enum_value_is_a_number() {
    let mut profile =
        SecurityProfile { profile_type: ProfileType::Localhost.into(), ..Default::default() };
    assert_eq!(serde_json::to_value(&profile).unwrap()["profileType"], "Localhost");
    profile.profile_type = 77;
    assert_eq!(serde_json::to_value(&profile).unwrap()["profileType"], 77);
}

#[test]
fn bytes_are_base64() {
    let value = KeyValue { key: "k".into(), value: vec![0xff, 0x00, b'a'] };
    assert_eq!(serde_json::to_value(value).unwrap(), json!({"key": "k", "value": "/wBh"}));
}

/// The names in JSON are those that the descriptors give, for a message of many kinds of field.
#[test]
fn every_field_is_written_under_its_json_name() {
    let set = FileDescriptorSet::decode(api_cri::DESCRIPTOR_SET).unwrap();
    let names = |message: &str| -> Vec<String> {
        let m = set.file.iter().flat_map(|f| &f.message_type).find(|m| m.name() == message);
        let mut names: Vec<_> = m.unwrap().field.iter().map(|f| f.json_name().to_owned()).collect();
        names.sort();
        names
    };
    let written = |value: serde_json::Value| -> Vec<String> {
        let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    let value = serde_json::to_value(LinuxContainerSecurityContext::default()).unwrap();
    assert_eq!(written(value), names("LinuxContainerSecurityContext"));
    let value = serde_json::to_value(ContainerConfig::default()).unwrap();
    assert_eq!(written(value), names("ContainerConfig"));
    let value = serde_json::to_value(PodSandboxStatusResponse::default()).unwrap();
    assert_eq!(written(value), names("PodSandboxStatusResponse"));
}

#[test]
fn equal_maps_have_equal_encodings() {
    let pairs = |order: &mut dyn Iterator<Item = u32>| PodSandboxConfig {
        labels: order.map(|i| (format!("k{i}"), i.to_string())).collect(),
        ..Default::default()
    };
    let (up, down) = (pairs(&mut (0..100)), pairs(&mut (0..100).rev()));
    assert_eq!(up.encode_to_vec(), down.encode_to_vec());
    assert_eq!(PodSandboxConfig::decode(&*up.encode_to_vec()).unwrap(), down);
}
