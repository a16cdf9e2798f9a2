package conformance

// deviations names, for each peer, the specs that it is known not to keep, and why. The specs
// describe what this project promises; a peer was measured against them to test the specs.
//
// Beyond this table: of a peer any error is taken for that of a bad request, and a pod that is
// already gone may be reported as not found when a spec cleans up.
var deviations = map[string]map[string]string{
	// containerd 1.6.20 of Debian 12.
	"containerd": {
		"TestHTTP1OnTheSocketIsAnsweredInOrder":     "the socket speaks HTTP/2 only",
		"TestRuntimeConfigNamesTheCgroupDriver":     "the call is younger",
		"TestStatusNamesRuntimeHandlersAndFeatures": "the fields are younger",

		"TestRunPodSandboxRepeatedGivesTheSameID":        "the name is reserved",
		"TestRunPodSandboxConcurrentlyGivesOneID":        "the name is reserved",
		"TestCreateContainerRepeatedGivesTheSameID":      "the name is reserved",
		"TestCreateContainerConcurrentlyGivesOneID":      "the name is reserved",
		"TestStopPodSandboxUnknownIsDone":                "answers NotFound",
		"TestStopContainerUnknownIsDone":                 "answers NotFound",
		"TestStopContainerCanBeRepeated":                 "answers NotFound once the container is removed",
		"TestRemovePodSandboxRemovesAllAndCanBeRepeated": "answers NotFound to a stop once the pod is removed",

		"TestStopAndRemovePodSandboxConcurrently": "NotFound to those that come second",

		"TestContainerStatusTellsTheUser":                             "the field is younger",
		"TestRunPodSandboxBadRequests/no_name":                        "accepted",
		"TestRunPodSandboxBadRequests/no_uid":                         "accepted",
		"TestRunPodSandboxBadRequests/no_namespace":                   "accepted",
		"TestRunPodSandboxBadRequests/relative_log_directory":         "accepted",
		"TestCreateContainerBadRequests/no_name":                      "accepted",
		"TestCreateContainerBadRequests/log_path_that_climbs":         "accepted",
		"TestCreateContainerBadRequests/empty_environment_key":        "accepted",
		"TestCreateContainerBadRequests/mount_without_container_path": "accepted",
		"TestCreateContainerBadRequests/unknown_capability":           "found when the container starts",

		"TestContainerImageIDIsThatOfThePull":            "the fields are younger",
		"TestContainerStopSignalOfTheRequest":            "the field is younger",
		"TestContainerUsers/supplemental_groups,_strict": "the field is younger",
		"TestContainerUsers/name_in_the_image":           "the groups of the image's user are left out",

		"TestImageVolume":                   "the field is younger",
		"TestImageVolumeIsToldWithItsID":    "the field is younger",
		"TestImageVolumeSubPaths":           "the field is younger",
		"TestImageVolumeBadRequests":        "the field is younger",
		"TestImageVolumeKeepsItsImage":      "the field is younger",
		"TestMountOptions":                  "the field is younger",
		"TestMountReadonlyAndWhatLiesBelow": "the field is younger",
		"TestMountsThatAreRefused":          "most are accepted, or found when the container starts",
		"TestDeviceBadRequests":             "found when the container starts",
		"TestVolumesThatAnImageDeclares":    "a volume at /proc is mounted, which the runtime refuses",
		"TestMountThroughALinkOfTheImage":   "a volume at /proc is mounted, which the runtime refuses",

		"TestExecSyncBadAndUnknown":                          "a negative timeout is accepted",
		"TestExecSyncOutputIsBounded/20_MiB_to_stdout":       "the bound leaves no room for the message around it",
		"TestExecSyncOutputIsBounded/20_MiB_to_stderr":       "the bound leaves no room for the message around it",
		"TestExecSyncOutputIsBounded/12_MiB_to_each_of_both": "each output has a bound of its own",
		"TestExecSyncDoesNotWaitForTheBackground":            "waits for the end of the output",
		"TestExecSyncTimeout":                                "children of the command are left running",

		"WebSocket v5.channel.k8s.io":           "the protocol is younger",
		"port-forward SPDY in WebSocket":        "the protocol is younger",
		"TestAttach":                            "last words may be lost",
		"TestAttachBringsTheLastWords":          "last words may be lost",
		"TestAttachWithoutStdinLeavesStdinOpen": "any client that goes closes stdin",
		"TestPortForwardHalfClose":              "the answer is cut off",
		"TestPortForwardServerThatIsDoneFirst":  "ends with the server's side",
		"TestPortForwardByIPv6":                 "not tried",
		"TestExecWithoutACommand":               "found when the command starts",
		"TestExecWebSocketMessageInFragments":   "only the first frame is seen",
		"TestHostileGarbageAfterTheUpgrade":     "keeps many such connections for ever, works on some for ever",
		"TestHostileHeaderBomb":                 "keeps such connections for ever",
		"TestHostileExecThatIsNeverRead":        "the command outlives its client",
		"TestStreamSlowRequest":                 "waits for ever",
		"TestExecDoesNotWaitForTheBackground":   "waits for the end of the output",
		"TestExecClientThatVanishes/terminal":   "the terminal stays",
		"TestExecThatDoesNotReadItsStdin":       "waits until all is read",

		"TestLogFormat":                             "drops \\r before \\n, and marks a last line without newline as partial",
		"TestLogIsWholeBeforeExitedIsSeen":          "EXITED may be seen first",
		"TestReopenContainerLogLosesNothing":        "the line that is being read is cut in two",
		"TestReopenContainerLogWhoseFileWasPutBack": "goes on in the file that has no name any more",

		"TestListImagesFilter":                              "the filter is not looked at",
		"TestRemoveImageByNameKeepsTheOtherName":            "one name removes all",
		"TestRemoveImageInUse":                              "image_ref changes once the image is gone",
		"TestImageFsInfo/containers":                        "the field is younger",
		"TestPullImageFromARegistryThatRefuses":             "without the word that the kubelet knows",
		"TestPullImageFromAPrivateRegistry/for_this_server": "a server address must be a URL",
		"TestHostileImagesAreRefused/dotdot":                "kept inside the root instead",
		"TestHostileBombIsRefused":                          "no bound; not run, as it would write 10 GiB",
	},
}
